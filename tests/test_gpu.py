"""Backends that keep a world's state on a GPU, on a driver played by the host; and what they say without one."""

from __future__ import annotations

import gc
import logging
from functools import partial

import numpy as np
import onnxruntime
import pytest
from fake_gpu import FakeDriver, fake_gpu
from test_backends import expected
from tiny_world import CELLS, write_rolling

from runtime.backends import BACKENDS, load_backend, usable_backends
from runtime.backends.graphs import load_graphs
from runtime.backends.on_gpu import GpuArray, GpuState
from runtime.backends.onnxruntime_cuda import OrtGpuMaker, without_graphs
from runtime.cuda import Memory, gpu_name
from runtime.errors import BackendError
from runtime.parity import compare
from runtime.session import Session
from runtime.world import World

KEYS = [{"gas"}, {"gas", "left"}, set(), {"right"}] * 5


def on_fake_gpu(world: World, precision: str = "fp32", players: int = 1) -> tuple[Session, FakeDriver]:
    """onnxruntime's CPU provider computes where the fake driver has its memory."""
    cuda, driver = fake_gpu()
    maker = OrtGpuMaker(cuda, "fake", precision, 1, [("CPUExecutionProvider", {})], device="cpu")
    return Session(world, backend=load_graphs(world, maker, players, GpuState(cuda)), seed=11), driver


def test_a_state_on_the_gpu_plays_the_same_game(tiny_file):
    session, _ = on_fake_gpu(World.open(tiny_file))
    for names, frame in zip(KEYS, expected(KEYS, 11, tint=10), strict=True):
        assert np.abs(session.tick(names).astype(int) - frame).max() <= 1


def test_the_state_stays_on_the_gpu(tiny_file):
    """What goes up is what the player did and the noise, what comes down is the picture."""
    session, driver = on_fake_gpu(World.open(tiny_file))
    for names in KEYS[:4]:
        session.tick(names)
    assert all(isinstance(array, GpuArray) for array in session.peek().values())
    gc.collect()
    held, driver.copies[:] = len(driver.held), []
    for names in KEYS:
        session.tick(names)
    ticks = len(KEYS)
    counts = {way: driver.copies.count(way) / ticks for way in ("up", "down", "inside")}
    assert counts == {"up": 2, "down": 1, "inside": 5}  # bars, tint, frame in; bars and frame out
    gc.collect()
    assert len(driver.held) == held  # older states' arrays are used again


def test_snapshots_and_rewinding_of_a_state_on_the_gpu(tiny_file):
    cuda, driver = fake_gpu()
    world = World.open(tiny_file)
    maker = OrtGpuMaker(cuda, "fake", "fp32", 1, [("CPUExecutionProvider", {})], device="cpu")
    backend = load_graphs(world, maker, 1, GpuState(cuda))
    session = Session(world, backend=backend, seed=11, rewind_mb=16)
    first = [session.tick(names).copy() for names in KEYS]
    saved = session.snapshot()
    after = [session.tick({"left"}).copy() for _ in range(5)]
    session.restore(saved)
    assert all(np.array_equal(session.tick({"left"}), frame) for frame in after)
    session.rewind(4)
    assert np.array_equal(session.tick({"left"}), after[1])
    session.restart()
    assert all(np.array_equal(session.tick(names), frame) for names, frame in zip(KEYS, first, strict=True))
    del session, backend, maker
    gc.collect()
    assert driver.held == {}


def test_a_snapshot_moves_between_cpu_and_gpu(tiny_file):
    world = World.open(tiny_file)
    there, _ = on_fake_gpu(world)
    here = Session(world, backend="onnxruntime", precision="fp32", threads=1, seed=11)
    there.tick({"gas"})
    here.restore(there.snapshot())
    there.restore(here.snapshot())
    assert np.array_equal(here.tick({"left"}), there.tick({"left"}))


def test_every_graph_of_a_world_runs_on_the_gpu(tmp_path):
    world = World.open(write_rolling(tmp_path / "rolling.world"))
    there, _ = on_fake_gpu(world)
    here = Session(world, backend="onnxruntime", precision="fp32", threads=1, seed=11)
    for names in [{"gas"}, {"gas"}, {"left"}, {"left"}]:
        assert np.array_equal(here.tick(names), there.tick(names)) and here.last_graph == there.last_graph
    assert here.last_graph == "tick" and "reprime" in there.graphs


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parity_reads_a_state_on_the_gpu(tiny_file, precision):
    world = World.open(tiny_file)
    there, _ = on_fake_gpu(world, precision)
    here = Session(world, backend="onnxruntime", precision="fp32", threads=1, seed=11)
    assert compare(here, there, ticks=3).worst < (1e-6 if precision == "fp32" else 1e-2)


def test_players_share_one_batch_on_the_gpu(tiny_file):
    session, _ = on_fake_gpu(World.open(tiny_file))
    cuda, _ = fake_gpu()
    maker = OrtGpuMaker(cuda, "fake", "fp32", 1, [("CPUExecutionProvider", {})], device="cpu")
    many = load_graphs(session.world, maker, 3, GpuState(cuda))
    state = {name: np.repeat(np.asarray(array), 3, 0) for name, array in session.peek().items()}
    prompt = np.repeat(session.backend.embed("dark"), 3, 0)
    frames, after = many.tick(state, np.eye(3, dtype=np.float32), prompt, np.zeros((3, 1, 1, 1, CELLS), np.float32), {})
    assert frames.shape[0] == 3 and after["bars"].shape == (3, CELLS)
    assert len({frame.tobytes() for frame in frames}) == 3


def test_a_graph_that_cannot_be_recorded_runs_without(tiny_file, monkeypatch, caplog):
    """As onnxruntime does it: a session that is told to record fails, where a part of it runs on the CPU."""
    asked = []
    plain = OrtGpuMaker._session

    def session(self, model, players, providers):
        asked.append(dict(providers[0][1]))
        if "enable_cuda_graph" in asked[-1]:
            raise RuntimeError("all compute graph nodes have not been partitioned")
        return plain(self, model, players, [("CPUExecutionProvider", {})])

    monkeypatch.setattr(OrtGpuMaker, "_session", session)
    world = World.open(tiny_file)
    cuda, _ = fake_gpu()
    maker = OrtGpuMaker(cuda, "fake", "fp32", 1, [("CPU", {"enable_cuda_graph": "1"})], device="cpu")
    Session(world, backend=load_graphs(world, maker, 1, GpuState(cuda))).tick()
    assert asked == [{"enable_cuda_graph": "1"}, {}] * 2
    assert [record.message.count("\n") for record in caplog.records] == [0, 0]
    assert "tick.onnx runs without a CUDA graph on fake (all compute" in caplog.text


def test_a_provider_that_fails_either_way_is_an_error_of_ours(tiny_file, monkeypatch):
    def session(*arguments):
        raise RuntimeError("Please install TensorRT libraries\nas mentioned")

    monkeypatch.setattr(OrtGpuMaker, "_session", session)
    cuda, _ = fake_gpu()
    maker = OrtGpuMaker(cuda, "onnxruntime-tensorrt", "fp32", 1, [("TensorrtExecutionProvider", {})])
    with pytest.raises(BackendError, match=r"cannot run tick.onnx: Please install TensorRT libraries$"):
        load_graphs(World.open(tiny_file), maker, 1, GpuState(cuda))


def test_only_cuda_graphs_are_left_out():
    options = {"enable_cuda_graph": "1", "trt_cuda_graph_enable": "1", "trt_engine_cache_enable": "1"}
    assert without_graphs(options) == {"trt_engine_cache_enable": "1"}


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_the_session_does_not_have_is_noticed(tiny_file, monkeypatch):
    """onnxruntime lists it, cannot load it, and takes the CPU without an error."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    world = World.open(tiny_file)
    cuda, _ = fake_gpu()
    maker = OrtGpuMaker(cuda, "onnxruntime-cuda", "fp32", 1, [("CUDAExecutionProvider", {})])
    with pytest.raises(BackendError, match="on CPUExecutionProvider instead of CUDAExecutionProvider"):
        load_graphs(world, maker, 1, GpuState(cuda))


@pytest.mark.skipif(gpu_name() is not None, reason="there is a GPU here")
@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_without_a_gpu_a_backend_asked_for_by_name_refuses(tiny_file, monkeypatch, name):
    monkeypatch.setitem(BACKENDS, name, (BACKENDS[name][0], "onnxruntime"))
    with pytest.raises(BackendError, match="no NVIDIA driver here"):
        load_backend(World.open(tiny_file), name)
    assert name not in usable_backends(World.open(tiny_file))


@pytest.mark.skipif(gpu_name() is not None, reason="there is a GPU here")
def test_without_a_gpu_auto_says_in_one_line_what_plays_instead(tiny_file, monkeypatch, caplog):
    monkeypatch.setitem(BACKENDS, "onnxruntime-cuda", (BACKENDS["onnxruntime-cuda"][0], "onnxruntime"))
    backend = load_backend(World.open(tiny_file), threads=1)
    assert backend.name == usable_backends(World.open(tiny_file))[0]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.message
    assert f"playing on {backend.name}, not on onnxruntime-cuda: no NVIDIA driver" in record.message


def test_a_backend_of_a_package_on_the_index_says_how_to_get_it(tiny_file, monkeypatch):
    monkeypatch.setitem(BACKENDS, "onnxruntime-cuda", (BACKENDS["onnxruntime-cuda"][0], "no-such-package"))
    with pytest.raises(BackendError, match="pip install no-such-package"):
        load_backend(World.open(tiny_file), "onnxruntime-cuda")


def test_what_the_driver_refuses_is_an_error_with_its_words():
    cuda, driver = fake_gpu()
    driver.cuMemAlloc_v2 = lambda pointer, nbytes: 2
    with pytest.raises(BackendError, match=r"refuses cuMemAlloc: out of memory \(error 2\)"):
        Memory(cuda, 100)


def test_torch_plays_what_it_cannot_record(caplog):
    native, torch_cuda, spec = (
        pytest.importorskip(name) for name in ("worldmodel.tick", "runtime.backends.torch_cuda", "worldmodel.spec")
    )
    torch = pytest.importorskip("torch")
    small = spec.WorldSpec(
        name="small", height=16, width=16, tick_hz=25, actions=("gas",), keys={"gas": ["w"]}, environment="fake",
        window=2, generator=spec.GeneratorSpec(dim=32, depth=1, heads=2),
        codec=spec.CodecSpec(
            channels=4, encoder_width=8, encoder_blocks=1, decoder_widths=(8, 8), decoder_blocks=(1, 1)
        ),
    )  # fmt: skip
    model = native.World(small).eval().requires_grad_(False)

    def refuse(function, arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    backend = torch_cuda.TorchGpuBackend(
        model, torch.device("cpu"), partial(native.tick, model), None, 1, 1, "fp32", refuse
    )
    state = {
        name: np.zeros(shape, str(dtype).removeprefix("torch."))
        for name, (shape, dtype) in native.state_shapes(small).items()
    }
    noise = np.zeros((1, small.schedule.noises, *small.latent_shape), np.float32)
    prompt = np.zeros((1, small.prompt_tokens, small.prompt_dim), np.float32)
    frame, after = backend.tick(state, np.ones((1, 1), np.float32), prompt, noise, {})
    assert frame.shape == (1, 16, 16, 3) and int(np.asarray(after["frame"])[0]) == 1
    (record,) = caplog.records
    assert "without a CUDA graph on torch-cuda (operation not permitted when stream is capturing)" in record.message


def test_captured_work_is_launched_as_one():
    cuda, driver = fake_gpu()
    asked = []
    again = cuda.capture(lambda: asked.append("work"))
    again()
    again()
    assert asked == ["work"] and driver.launches == 2
    assert cuda.name == "Fake GPU" and cuda.capability == (9, 0) and cuda.used_mb() == 2048

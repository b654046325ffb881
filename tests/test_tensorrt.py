"""The TensorRT backend on a GPU and a package played by the host. What a real GPU computes, only one can tell."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeDriver, fake_gpu
from fake_tensorrt import BROKEN, Builder, Context, fake_tensorrt
from tiny_world import write_rolling

from export.tensorrt import About, EngineError
from runtime.backends import load_backend, usable_backends
from runtime.backends.on_gpu import GpuArray
from runtime.cli import main
from runtime.errors import BackendError, MissingExtraError
from runtime.session import Session
from runtime.world import DEFAULT_WORLD, World


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeDriver:
    """A machine with a GPU and TensorRT on it; captured work is done again when it is launched."""
    cuda, driver = fake_gpu()
    plain = cuda.capture

    def capture(work):
        launch = plain(work)
        return lambda: (launch(), work())

    monkeypatch.setattr(cuda, "capture", capture)
    monkeypatch.setattr("runtime.backends.tensorrt.gpu", lambda: cuda)
    monkeypatch.setattr("runtime.backends.tensorrt.engines_folder", lambda: tmp_path / "engines")
    monkeypatch.setattr("runtime.backends.installed", lambda package: True)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    return driver


def test_tensorrt_plays_the_game_of_the_cpu(tiny_file, driver):
    """In fp16, whose rounding the tiny world shows as a grey level."""
    world = World.open(tiny_file)
    there = Session(world, backend="tensorrt", seed=11)
    here = Session(world, backend="onnxruntime", precision="fp32", threads=1, seed=11)
    assert (there.backend.name, there.backend.precision) == ("tensorrt", "fp16")
    for names in [{"gas"}, {"left"}, set(), {"right"}] * 3:
        assert np.abs(there.tick(names).astype(int) - here.tick(names)).max() <= 1
    assert driver.launches == 12 + 1  # every tick is one launch of recorded work, the start's recache too
    assert all(isinstance(array, GpuArray) for array in there.peek().values())


def test_all_graphs_of_a_world_become_engines(tmp_path, driver):
    session = Session(World.open(write_rolling(tmp_path / "rolling.world")), backend="tensorrt")
    assert session.graphs == ("tick", "reprime")
    session.tick({"gas"})
    assert session.last_graph == "reprime" and Builder.built == 3


def test_an_engine_is_built_once_for_each_gpu_version_and_precision(tiny_file, driver, monkeypatch, tmp_path):
    world = World.open(tiny_file)
    load_backend(world, "tensorrt")
    assert Builder.built == 2  # tick and recache; the prompt's embedding stays on the CPU
    load_backend(world, "tensorrt")
    assert Builder.built == 2
    load_backend(world, "tensorrt", players=2)
    assert Builder.built == 4
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt("11.5.0"))
    load_backend(world, "tensorrt")
    assert Builder.built == 2
    names = sorted(path.name for path in (tmp_path / "engines").glob("*.engine"))
    assert f"{world.hash[:16]}-tick-fp16-1p-tensorrt-11.4.0-Fake_GPU.engine" in names and len(names) == 6
    assert (tmp_path / "engines" / "timings-tensorrt-11.4.0-Fake_GPU").read_bytes() == b"...."  # one for each engine


def test_an_engine_that_does_not_fit_is_built_again_and_that_is_said(tiny_file, driver, tmp_path, caplog):
    world = World.open(tiny_file)
    load_backend(world, "tensorrt")
    caplog.clear()
    file = tmp_path / "engines" / f"{world.hash[:16]}-tick-fp16-1p-tensorrt-11.4.0-Fake_GPU.engine"
    head, _, _ = file.read_bytes().partition(b"\n")
    file.write_bytes(head + b"\n" + BROKEN)
    Session(world, backend="tensorrt").tick()
    (record,) = caplog.records
    assert "building tick again" in record.message and "another GPU" in record.message
    file.write_bytes(b"?")
    Session(world, backend="tensorrt").tick()
    assert Builder.built == 4


def test_what_fails_on_the_gpu_is_an_error_of_ours(tiny_file, driver, monkeypatch):
    world = World.open(tiny_file)
    monkeypatch.setattr(Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(BackendError, match="failed to run tick on Fake GPU"):
        load_backend(world, "tensorrt")
    monkeypatch.setattr(Context, "set_tensor_address", lambda self, name, address: False)
    with pytest.raises(BackendError, match="does not take"):
        load_backend(world, "tensorrt")
    monkeypatch.setattr("fake_tensorrt.Engine.create_execution_context", lambda self: None)
    with pytest.raises(BackendError, match="too little memory"):
        load_backend(world, "tensorrt")
    monkeypatch.setattr("fake_tensorrt.Runtime.deserialize_cuda_engine", lambda self, data: None)
    with pytest.raises(EngineError, match="cannot run here"):
        load_backend(world, "tensorrt")


def test_work_that_cannot_be_recorded_is_asked_for_every_time(tiny_file, driver, monkeypatch, caplog):
    def refuse(work):
        raise BackendError("the NVIDIA driver refuses cuStreamEndCapture")

    monkeypatch.setattr(sys.modules["runtime.backends.tensorrt"].gpu(), "capture", refuse)
    session = Session(World.open(tiny_file), backend="tensorrt")
    session.tick()
    assert driver.launches == 0 and "runs without a CUDA graph" in caplog.text


def test_bf16_and_fp16_are_its_precisions(tiny_file, driver):
    with pytest.raises(BackendError, match="it has: fp16, bf16"):
        load_backend(World.open(tiny_file), "tensorrt", precision="int8")


def test_a_package_without_its_libraries_says_how_to_get_them(tiny_file, driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match="pip install tensorrt-rtx"):
        load_backend(World.open(tiny_file), "tensorrt-rtx")


def test_engines_are_never_built_unasked(tiny_file, driver, monkeypatch):
    """They take minutes: auto is somebody's first start."""
    monkeypatch.setattr("runtime.backends.gpu_name", lambda: "Fake GPU")
    usable = usable_backends(World.open(tiny_file))
    assert usable.index("onnxruntime") < usable.index("tensorrt")


def test_what_makes_another_engine_is_in_its_name():
    plain = About("0" * 64, "tick", "fp16", 1, "tensorrt", "11.4")
    others = [About("0" * 64, "tick", "fp16", 1, "tensorrt", "11.4", gpu) for gpu in ("NVIDIA H200", "A/../B")]
    assert len({about.file_name for about in [plain, *others]}) == 3
    assert all("/" not in about.file_name and ".." not in about.timings_name for about in others)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_shipped_world_becomes_engines_without_a_gpu(tmp_path, capsys, precision):
    """All of its graphs, by the command; that they compute the same, only a machine with a GPU can tell."""
    pytest.importorskip("tensorrt_rtx")
    manifest = World.open(DEFAULT_WORLD).manifest
    words = [DEFAULT_WORLD, "--to", "tensorrt-rtx", "--precision", precision, "--out", str(tmp_path), "--json"]
    with pytest.raises(SystemExit) as left:
        main(["export", *words])
    assert not left.value.code
    engines = {Path(one["out"]).name.split("-")[1]: one for one in json.loads(capsys.readouterr().out)["engines"]}
    assert set(engines) == {"tick", "recache", *({"reprime", "tick_fast"} & set(manifest.graphs))}
    for name, one in engines.items():
        kept, made = ({key.partition(".")[2] for key in one[side] if "." in key} for side in ("inputs", "outputs"))
        assert kept <= set(manifest.state) and "kv.0" in made <= set(manifest.state)
        assert "prompt" in one["inputs"] and ("frame" in one["outputs"]) == (name != "recache")
        narrow, wide = (one["layers"].get(kind, 0) for kind in ({"fp16": "HALF", "bf16": "BF16"}[precision], "FLOAT"))
        assert narrow > 10 * wide  # float32 are angles, and what is float32 outside
        assert Path(one["out"]).stat().st_size == one["bytes"] > 1 << 20

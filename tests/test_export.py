"""A trained world becomes a file that plays the same game as torch."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from random_world import random_world
from safetensors.numpy import load

from export.int8 import Range, calibrate, linears, scales, with_int8
from export.narrow import narrow
from export.onnx import export_graphs
from export.pack import load_world, pack, read_card
from export.quantize import LOCATION, quantize, read_weights, with_weights
from export.tensorrt import About, EngineError, build, cached
from export.tensorrt import load as load_engine
from export.ticks import ticks
from runtime.backends import load_backend
from runtime.backends.imported import Kept
from runtime.backends.torch import native_world, tensors
from runtime.backends.torch_cuda import TorchGpuBackend
from runtime.cli.export import levels
from runtime.errors import BackendError, CheckFailed, MissingExtraError, UsageError, WorldloopError
from runtime.futures import futures, table
from runtime.int8 import add_int8, most, play, roll_outs
from runtime.noise import tick_noise
from runtime.parity import TOLERANCE, check_world, compare, psnr_of, relative_error
from runtime.replay import Recorder, open_replay, play_again
from runtime.session import Session
from runtime.world import SHIPPED, World
from worldmodel import tick as native
from worldmodel.begin import context_frames
from worldmodel.prompt.encoder import PromptEncoder
from worldmodel.spec import CodecSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import World as TorchWorld

SPEC = WorldSpec(
    name="small", height=32, width=32, tick_hz=25, actions=("left", "gas"), keys={"left": ["a"], "gas": ["w"]},
    environment="fake", window=2,
    codec=CodecSpec(channels=4, encoder_width=16, encoder_blocks=1, decoder_widths=(16, 16), decoder_blocks=(1, 1)),
    generator=GeneratorSpec(dim=64, depth=1, heads=2, reach=(1, 2), slow=2, prompt_skip=True, conv_head=8),
)  # fmt: skip
EARLIER = Path(__file__).parent / "worlds" / "format1-kv-by-slot.world"
CARD = """
title = "Small"
licence = "MIT"
credits = "tests"
trained_on = "nothing"
preview = false
prompts = ["a grey road"]
default_prompt = "a grey road"
[[starts]]
name = "standing"
seed = 1
ticks = 0
[[starts]]
name = "driving"
seed = 2
ticks = 20
"""


class FakeGame:
    """Noise that moves; the scene changes at tick 18."""

    env_id, actions = "Fake-v0", ("gas", "left")

    def reset(self, seed: int) -> np.ndarray:
        self.rng, self.tick, self.now = np.random.default_rng(seed), 0, {"captions": ["a grey road"]}
        return self.look()

    def look(self) -> np.ndarray:
        return self.rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        self.tick += 1
        if self.tick == 18:
            self.now = {"captions": ["a red road"]}
        return self.look(), False

    def scene(self) -> dict:
        return self.now

    def policy(self, rng: np.random.Generator):
        return lambda: np.array([True, False])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random world, stored in two ways."""
    folder = tmp_path_factory.mktemp("run")
    world, card = random_world(folder, SPEC, CARD)
    graphs = export_graphs(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.pack.make_adapter_for", lambda *_: FakeGame())
        for storage in ("fp32", "int8"):
            pack(world, card, graphs, folder / f"{storage}.world", storage)
    return {storage: folder / f"{storage}.world" for storage in ("fp32", "int8")}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("storage", ["fp32", "int8"])
def test_fifty_ticks_are_those_of_torch_with_the_same_weights(files, storage, backend):
    world = World.open(files[storage])
    reference = Session(world, backend="torch", threads=1)
    found = compare(reference, Session(world, backend=backend, precision="fp32", threads=1), ticks=50)
    assert set(found.errors) == set(world.manifest.state) and max(found.errors.values()) < TOLERANCE


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
def test_compiled_torch_in_bf16_plays_the_same_game(files):
    world = World.open(files["int8"])
    compiled = Session(world, backend="torch", precision="bf16", threads=1)
    assert compiled.backend.precision == "bf16"
    assert min(compare(Session(world, backend="torch", threads=1), compiled, ticks=5).psnr) > 35


@pytest.fixture(scope="module")
def rolling(files) -> World:
    """The same weights with two frames in flight, in two passes a tick."""
    folder = files["fp32"].parent
    world = load_world(folder, sigmas=levels("0.5,1 0.3,0.7"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.pack.make_adapter_for", lambda *_: FakeGame())
        pack(world, read_card(folder / "card.toml"), export_graphs(world), folder / "rolling.world", "fp32", level=1)
    return World.open(folder / "rolling.world")


@pytest.mark.parametrize(("keep", "carried"), [(1.0, True), (0.99, False)])
def test_no_sink_is_rounded_away(tmp_path, monkeypatch, keep, carried):
    """A backend may round keys and values that stay what they are, but no average that moves by a hundredth a tick."""
    monkeypatch.setattr("export.pack.make_adapter_for", lambda *_: FakeGame())
    world, card = random_world(tmp_path, replace(SPEC, sink_keep=keep), CARD)
    pack(world, card, export_graphs(world), tmp_path / "small.world", "fp32", level=1)
    file = World.open(tmp_path / "small.world")
    assert file.manifest.state["kv.0"].carried == carried and not file.manifest.state["latents"].carried
    exact, played = (Session(file, backend=name, threads=1) for name in ("torch", "openvino"))
    for session in (exact, played):
        for _ in range(50):
            session.tick({"gas"})
    sinks = [np.asarray(session.peek()["kv.0"])[:, :, :, 0] for session in (exact, played)]
    assert relative_error(sinks[1], sinks[0]) < 0.02


@pytest.mark.parametrize("graph", ["tick", "reprime", "tick_fast"])
def test_every_way_to_tick_is_that_of_torch(rolling, graph):
    model = native_world(rolling)
    way = ticks(model.spec)[graph]
    session = Session(rolling, backend="onnxruntime", precision="fp32", threads=1, seed=3)
    assert session.graphs == ("tick", "reprime", "tick_fast") and session.in_flight == 1
    session.tick()
    state, prompt = tensors(session.peek()), torch.from_numpy(session.backend.embed(session.prompt))
    frame = session.tick({"gas"}, graph=graph)
    noise = torch.from_numpy(tick_noise(3, 1, (1, *way.noise)))
    with torch.no_grad():
        expected, after = way.make(model, state, torch.tensor([[0.0, 1.0]]), prompt, noise)
    assert np.abs(frame.astype(int) - expected[0].numpy()).max() <= 1
    for name, array in session.peek().items():
        assert np.allclose(array, after[name], atol=TOLERANCE), name


def test_a_world_with_frames_in_flight_passes_the_check_of_its_export(rolling):
    """Keys change on the way: the file would make frames in flight anew, the torch reference cannot."""
    sessions = [Session(rolling, backend=name, precision="fp32", threads=1) for name in ("torch", "onnxruntime")]
    assert compare(*sessions, ticks=8).worst < TOLERANCE


def test_levels_that_are_no_numbers_are_refused():
    assert levels("1 0.5") == ((1.0,), (0.5,))
    with pytest.raises(UsageError, match="oldest first"):
        levels("1 half")


def test_a_game_that_was_degraded_at_times_is_the_same_again(files, tmp_path):
    world = World.open(files["int8"])
    session = Session(world, backend="onnxruntime", threads=1)
    assert session.graphs == ("tick", "tick_fast")
    recorder, frames = Recorder(tmp_path / "game.replay", session, str(world.path)), []
    for number in range(12):
        frames.append(session.tick({"gas"}, graph="tick_fast" if 3 <= number < 7 else "tick"))
        recorder.tick(session, frames[-1])
    recorder.close()
    again = play_again(open_replay(tmp_path / "game.replay"), Session(world, backend="onnxruntime", threads=1))
    assert all(np.array_equal(played.frame, frame) for played, frame in zip(again, frames, strict=True))


def test_the_torch_backend_of_gpus_keeps_its_state_and_plays_the_same_game(files):
    """On the CPU in the GPU's place, with the function itself in the place of its recording."""
    world, recorded = World.open(files["int8"]), []

    def record(function, arguments):
        recorded.append(len(arguments))
        return function

    model = native_world(world)
    backend = TorchGpuBackend(
        model, torch.device("cpu"), partial(native.tick, model), PromptEncoder.load(), 1, 1, "fp32", record
    )
    sessions = [Session(world, backend=chosen, threads=1) for chosen in ("torch", backend)]
    for session in sessions:
        session.tick()
        session.set_prompt("a red road through blue fields")
    assert compare(*sessions, ticks=5).worst < 1e-6
    assert recorded == [3 + len(world.manifest.state)]
    assert all(isinstance(array, Kept) for array in sessions[1].peek().values())
    sessions[0].restore(sessions[1].snapshot())
    assert np.array_equal(*(session.tick({"left"}) for session in sessions))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_torch_without_a_gpu_says_which_torch_it_is(files):
    with pytest.raises(BackendError, match=r"built for .* finds no NVIDIA GPU here: use the backend torch"):
        Session(World.open(files["int8"]), backend="torch-cuda")


def test_a_prompt_switch_is_that_of_torch(files):
    world = World.open(files["int8"])
    sessions = [Session(world, backend=name, precision="fp32", threads=1) for name in ("torch", "onnxruntime")]
    for session in sessions:
        session.tick()
        session.set_prompt("a red road through blue fields")
    assert max(compare(*sessions, ticks=5).errors.values()) < TOLERANCE


def test_the_stored_weights_change_the_future_only_a_little(files):
    exact, stored = (Session(World.open(files[name]), backend="torch", threads=1) for name in ("fp32", "int8"))
    assert min(compare(exact, stored, ticks=20).psnr) > 25


def test_parity_of_a_world_is_a_case_of_the_parity_command(files):
    case = check_world(str(files["int8"]), "onnxruntime", ticks=5)
    assert (
        case["ok"] and case["name"] == "small" and case["kind"] == "onnxruntime fp32" and "latents" in case["outputs"]
    )


class Rewarded:
    """A session whose reward passes through nothing, `off` as much as is said."""

    world = SimpleNamespace(manifest=SimpleNamespace(action_names=("gas",)))

    def __init__(self, off: float) -> None:
        self.off, self.ticks = off, 0

    def tick(self, actions: set[str], graph: str) -> np.ndarray:
        self.ticks += 1
        return np.zeros((4, 4, 3), np.uint8)

    def peek(self) -> dict[str, np.ndarray]:
        return {"reward": np.array([self.ticks - 10 + 1e-6 + self.off])}


def test_what_is_next_to_nothing_in_one_tick_may_be_off_by_as_little_as_in_others():
    assert compare(Rewarded(0), Rewarded(1e-6), ticks=20).worst < 1e-6
    assert compare(Rewarded(0), Rewarded(0.1), ticks=20).worst == pytest.approx(0.1 / 5.8, rel=0.01)
    assert not compare(Rewarded(0), Rewarded(np.nan), ticks=20).worst <= TOLERANCE, "what is no number is no parity"


def test_futures_of_every_backend_and_precision_stand_in_one_table(files):
    rows = futures(World.open(files["int8"]), ticks=8, threads=1)
    played = {(row["backend"], row["precision"]) for row in rows}
    assert {("openvino", "fp32"), ("onnxruntime", "fp32")} <= played
    for row in rows:
        exact = row["precision"] == "fp32"
        assert row["tick_error"] < (1e-5 if exact else 0.05) and row["tick_psnr"] > (60 if exact else 30)
        assert row["distance"] < (0.01 if exact else 1) and row["apart"] is None
    assert len(table(rows).splitlines()) == 2 + len(rows)


def test_a_wrong_weight_is_noticed(files, monkeypatch):
    world = World.open(files["fp32"])
    right = read_weights(world.read(LOCATION))
    wrong = {name: array * (1.05 if name == "generator.blocks.0.down.weight" else 1) for name, array in right.items()}
    monkeypatch.setattr("runtime.backends.torch.read_weights", lambda data: wrong)
    reference = Session(world, backend="torch", threads=1)
    found = compare(reference, Session(world, backend="onnxruntime", threads=1), ticks=5)
    assert max(found.errors.values()) > TOLERANCE


def test_players_of_one_batch_play_as_alone(files):
    world = World.open(files["int8"])
    many, one = (load_backend(world, "onnxruntime", players=players, threads=1) for players in (3, 1))
    start = {name: np.zeros(spec.shape, spec.dtype) for name, spec in world.manifest.state.items()}
    start |= world.start_state()
    prompt = one.embed("a grey road")
    single = one.recache(start, prompt)
    batch = many.recache({name: np.repeat(array, 3, 0) for name, array in start.items()}, np.repeat(prompt, 3, 0))
    noise = tick_noise(0, 0, (3, *world.manifest.noise))
    action = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    frames, _ = many.tick(batch, action, np.repeat(prompt, 3, 0), noise, {})
    for player in range(3):
        alone, _ = one.tick(single, action[player : player + 1], prompt, noise[player : player + 1].copy(), {})
        assert np.abs(frames[player].astype(int) - alone[0]).max() <= 1


def test_a_start_shows_one_scene_and_says_which(files):
    """The scene changes at tick 18; frames of the old one must not be in the window of a world that is told the new."""
    world = World.open(files["int8"])
    prompts = {start.name: start.prompt for start in world.manifest.starts}
    assert prompts == {"standing": "a grey road", "driving": "a red road"}
    pressed = {name: world.start_state(name)["actions"] for name in prompts}
    assert not pressed["standing"].any()
    assert pressed["driving"][..., 1].all() and not pressed["driving"][..., 0].any()  # in the world's order of actions


def test_a_tick_is_a_short_list_of_operations(files):
    """With few tokens a tick costs as much as its operations are many; this one has one block."""
    tick = onnx.load_model_from_string(World.open(files["fp32"]).read("tick.onnx"))
    places = (2 * SPEC.generator.reach[0] + 1) * (2 * SPEC.generator.reach[1] + 1)  # looked at once for all passes
    slow = 10  # of the numbers that a frame begins from
    skip = 8  # the prompt's own way to the modulations
    convolutions = 32  # and what they are told
    most = (65 + 20 + convolutions) * SPEC.schedule.passes + places + slow + skip + 200
    assert len([node for node in tick.graph.node if node.op_type != "Identity"]) < most


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_world_of_an_earlier_layout_still_plays(backend):
    """Written before keys lay by head. Its graphs agree on their layout among themselves."""
    session = Session(World.open(EARLIER), backend=backend, precision="fp32", threads=1)
    frames = [session.tick({"gas"}) for _ in range(8)]
    session.set_prompt("very bright")
    assert session.tick().shape == (16, 16, 3) and not np.array_equal(frames[0], frames[-1])


def test_torch_says_that_it_cannot_play_an_earlier_layout():
    with pytest.raises(BackendError, match="onnxruntime"):
        Session(World.open(EARLIER), backend="torch", threads=1)


def tick_with_weights(file: Path) -> onnx.ModelProto:
    with World.open(file).unpacked() as folder:
        return with_weights(folder / "tick.onnx")


def test_stored_weights_come_back_into_a_graph(files):
    model = tick_with_weights(files["int8"])
    onnx.checker.check_model(model, full_check=True)
    read = onnx.numpy_helper.to_array
    inside = {tensor.name.removeprefix("world."): read(tensor) for tensor in model.graph.initializer}
    stored = read_weights(World.open(files["int8"]).read(LOCATION))
    shared = inside.keys() & stored.keys()
    assert len(shared) > 20 and all(np.array_equal(inside[name], stored[name]) for name in shared)


def test_a_narrow_graph_makes_the_same_frame(files):
    wide = tick_with_weights(files["int8"])
    session = Session(World.open(files["int8"]), backend="onnxruntime", threads=1)
    given = {f"state.{name}": array for name, array in session.peek().items()}
    noise = tick_noise(0, 0, (1, *session.world.manifest.noise))
    given |= {"action": np.ones((1, 2), np.float32), "prompt": session.backend.embed("a grey road"), "noise": noise}
    frames = []
    for model in (wide, narrow(wide, "fp16")):
        run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        frames.append(run.run(["frame"], {value.name: given[value.name] for value in run.get_inputs()})[0])
    assert 40 < psnr_of(*frames) < 99


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_engine_is_built_without_a_gpu(files, tmp_path, precision):
    """That it computes the same, only a machine with a GPU can tell."""
    package = pytest.importorskip("tensorrt_rtx")
    world = World.open(files["int8"])
    about = About(world.hash, "tick", precision, 1, "tensorrt-rtx", package.__version__)
    path, engine = cached(about, tmp_path, lambda: build(tick_with_weights(files["int8"]), about))
    assert engine is not None and engine.outputs["frame"] == "uint8 [-1, 32, 32, 3]"
    assert "next.kv.0" in engine.outputs and "state.kv.0" in engine.inputs
    narrow_type = {"fp16": "HALF", "bf16": "BF16"}[precision]
    assert engine.types[narrow_type] > 300 and engine.types["FLOAT"] < 30  # angles; casts of what is float32 outside
    assert path.stat().st_size > 1 << 20 and cached(about, tmp_path, pytest.fail) == (path, None)
    other = tmp_path / "other.engine"
    other.write_bytes(path.read_bytes().replace(b'"version": "', b'"version": "0.', 1))
    with pytest.raises(EngineError, match="build it again"):
        load_engine(other)


def test_an_engine_of_a_package_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    about = About("0", "tick", "fp16", 1, "tensorrt", "11")
    with pytest.raises(MissingExtraError, match="pip install tensorrt"):
        build(onnx.ModelProto(), about)
    (tmp_path / "broken.engine").write_bytes(b"?")
    with pytest.raises(EngineError, match="not an engine file"):
        load_engine(tmp_path / "broken.engine")


@pytest.fixture(scope="module")
def calibrated(files) -> tuple[World, dict]:
    path = files["int8"].with_name("calibrated.world")
    return World.open(files["int8"]), add_int8(World.open(files["int8"]), path, budget=20)


def test_a_calibrated_world_plays_in_int8_and_is_hardly_larger(calibrated, monkeypatch):
    plain, report = calibrated
    monkeypatch.setattr("runtime.backends.onnxruntime.multiplies_int8", lambda: True)
    world = World.open(report["out"])
    assert Path(report["out"]).stat().st_size < plain.path.stat().st_size + 100_000  # the weights are there already
    sessions = [Session(world, backend="onnxruntime", precision=name, threads=1) for name in ("fp32", "auto")]
    assert sessions[1].backend.precision == "int8"
    assert 20 < min(compare(*sessions, ticks=10).psnr) < 99


def test_the_table_of_layers_begins_with_the_least_sensitive(calibrated):
    _, report = calibrated
    errors = [layer["error"] for layer in report["layers"]]
    assert len(errors) == 4 and errors == sorted(errors) and 0 < errors[0] < errors[-1] < 0.1
    chosen = [layer["int8"] for layer in report["layers"]]
    assert chosen == sorted(chosen, reverse=True) and chosen[0]


def test_a_loud_channel_does_not_cost_the_others_their_precision(files, monkeypatch):
    world, layer = World.open(files["int8"]), "generator.blocks.0.down.weight"
    with world.unpacked() as folder:
        model = onnx.load(folder / "tick.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "generator.blocks.0.up.bias")
    louder = onnx.numpy_helper.to_array(bias).copy()
    louder[3] = 40  # goes through the activation as it is
    bias.CopyFrom(onnx.numpy_helper.from_array(louder, bias.name))
    games = roll_outs(world, {value.name for value in model.graph.input})
    ranges, exact = calibrate(model, games[0]), play(model, games)

    def error() -> float:
        found = play(with_int8(model, ranges, scales(model), [layer]), games)
        return float(np.mean([relative_error(*pair) for pair in zip(found, exact, strict=True)]))

    products = linears(model)[layer].products
    assert len(products) == SPEC.schedule.passes and all(3 in ranges[node.input[0]].apart for node in products)
    kept_apart = error()
    monkeypatch.setattr("export.int8.LOUD", np.inf)
    assert not any(seen.apart.size for seen in ranges.values()) and kept_apart < error() / 3


def test_an_activation_without_loud_channels_has_none_apart():
    even, one = np.linspace(1, 1.9, 64, dtype=np.float32), np.ones(64, np.float32)
    assert not Range(-even, even).apart.size and Range(-even, even).rest == pytest.approx((-1.9, 1.9))
    one[[7, 40]] = 9
    assert Range(-one, one / 2).apart.tolist() == [7, 40] and Range(-one, one / 2).rest == (-1, 0.5)
    assert not Range(-0 * one, 0 * one).apart.size  # of nothing at all


def test_a_budget_that_no_layer_keeps_is_said(files, tmp_path):
    with pytest.raises(CheckFailed, match="99 dB"):
        add_int8(World.open(files["int8"]), tmp_path / "never.world", budget=99)
    with pytest.raises(WorldloopError, match="storage int8"):
        add_int8(World.open(files["fp32"]), tmp_path / "never.world")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 16])
def test_as_many_layers_are_chosen_as_the_budget_allows(limit):
    asked = []
    assert most(16, lambda count: asked.append(count) or count <= limit) == limit and len(asked) <= 5


def test_a_world_without_an_int8_graph_has_no_int8(files):
    with pytest.raises(BackendError, match="fp32"):
        load_backend(World.open(files["int8"]), "onnxruntime", precision="int8")


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.world")))
def test_graphs_of_the_shipped_worlds_are_sound_and_only_the_number_of_players_is_open(name):
    world = World.open(name)
    with world.unpacked() as folder:
        for name, graph in world.manifest.graphs.items():
            onnx.checker.check_model(folder / graph.file, full_check=True)
            model = onnx.shape_inference.infer_shapes(
                onnx.load(folder / graph.file, load_external_data=False), strict_mode=True, data_prop=True
            )
            shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
            results = [result for node in model.graph.node for result in node.output]
            if name == "prompt":  # of any length, too
                continue
            assert set(results) <= {*shapes, *(value.name for value in model.graph.output)}
            assert all(size.dim_value for shape in shapes.values() for size in shape[1:])
            for value in [*model.graph.input, *model.graph.output]:
                players, *rest = value.type.tensor_type.shape.dim
                assert players.dim_param and all(size.dim_value for size in rest)


def test_doom_can_be_begun_in_each_of_its_scenes():
    manifest = World.open("doom").manifest
    assert {start.prompt for start in manifest.starts} == set(manifest.prompts) and len(manifest.starts) == 3


def test_a_world_file_is_the_same_wherever_its_sources_lie(files):
    world, sources = World.open(files["fp32"]), str(Path(__file__).parents[1]).encode()
    assert not [name for name in world.manifest.files if sources in world.read(name)]


def test_weights_are_stored_once_for_all_graphs(files):
    stored = load(World.open(files["int8"]).read(LOCATION))
    matrices = [name for name in stored if name.startswith("generator.blocks.0.") and not name.endswith(".scale")]
    assert {stored[name].dtype.name for name in matrices if stored[name].size >= 1024} == {"int8"}
    parameters = sum(parameter.numel() for parameter in TorchWorld(SPEC).parameters())
    assert sum(array.size for name, array in stored.items() if not name.endswith(".scale")) < 1.1 * parameters


def test_a_picture_is_encoded_by_bytes_and_shown_by_halves(files):
    """The encoder makes a start and is heard no more; what the decoder loses is seen in every frame."""
    stored = load(World.open(files["int8"]).read(LOCATION))
    kinds = [stored[f"codec.{part}.1.first.weight"].dtype.name for part in ("encoder", "decoder")]
    assert kinds == ["int8", "float16"]
    frames = np.random.default_rng(0).integers(0, 256, (1, context_frames(SPEC), 32, 32, 3), np.uint8)
    made = []
    for storage in ("fp32", "int8"):
        with World.open(files[storage]).unpacked() as folder:
            run = onnxruntime.InferenceSession(folder / "begin.onnx", providers=["CPUExecutionProvider"])
        actions = np.zeros((1, context_frames(SPEC), 2), np.float32)
        made.append(run.run(["next.latents"], {"frames": frames, "actions": actions})[0])
    assert 0 < relative_error(made[1], made[0]) < 0.02


@pytest.mark.parametrize("shape", [(4, 300), (8, 4, 3, 3)])
def test_int8_weights_are_within_one_percent(shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[0] *= 100  # a large channel must not cost the others their precision
    values, scale = quantize(weight)
    again = values * scale.reshape(-1, *[1] * (len(shape) - 1))
    for row, expected in zip(again, weight, strict=True):
        assert np.linalg.norm(row - expected) < 0.012 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "text, said",
    [("title = ", "card"), (CARD.replace("licence", "lizenz"), "licence"), (CARD.split("[[")[0], "starts")],
)
def test_a_card_that_says_too_little_is_refused(tmp_path, text, said):
    (tmp_path / "card.toml").write_text(text)
    with pytest.raises(WorldloopError, match=said):
        read_card(tmp_path / "card.toml")

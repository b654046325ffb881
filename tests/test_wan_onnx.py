"""A small Wan world's block as a graph: the same pictures as torch, and an engine for NVIDIA GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.narrow import narrow
from export.tensorrt import About, build
from export.wan_onnx import block, export_block, steady_state, write_block
from runtime.cli import main
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.codec.taehv import TaehvSpec
from worldmodel.codec.wan_vae import WanVaeSpec
from worldmodel.errors import SpecError
from worldmodel.families.wan_transformer import WanSpec, WanTransformer
from worldmodel.families.wan_world import WanWorld, WanWorldSpec
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

SPEC = WanWorldSpec(
    "small", WanSpec(dim=64, ffn_dim=96, heads=2, layers=2, freq_dim=16, in_channels=4, out_channels=4, text_dim=8),
    SinkWindow(window=4, sink=1, chunk=1), FewStep(FlowTable(shift=5.0).warp((1000, 500))), rows=4, columns=6,
    prompt_rows=5, codec=TaehvSpec(decoder_channels=(8, 8, 8, 8), encoder_channels=8, latent_channels=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def played() -> tuple[WanWorld, dict, onnx.ModelProto]:
    """The world, a state with a full cache, and the graph traced on it."""
    world = random_world(SPEC)
    state = steady_state(world, torch.randn(1, 5, 8))
    return world, state, export_block(world, state)


def random_world(spec: WanWorldSpec) -> WanWorld:
    torch.manual_seed(0)
    world = WanWorld(spec).eval().requires_grad_(False)
    for parameter in world.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return world


def opened(model: onnx.ModelProto | Path) -> Callable[[dict, torch.Tensor], dict[str, np.ndarray]]:
    """The graph as a function from a state and noise to the next state."""
    graph = model if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def play(state: dict, noise: torch.Tensor) -> dict[str, np.ndarray]:
        given = {"noise": noise.numpy(), **{f"state.{name}": np.asarray(part) for name, part in state.items()}}
        made = session.run(names, {value.name: given[value.name] for value in session.get_inputs()})
        return {**state, **{name.removeprefix("next."): part for name, part in zip(names, made, strict=True)}}

    return play


def run(model: onnx.ModelProto | Path, state: dict, noise: torch.Tensor) -> dict[str, np.ndarray]:
    return opened(model)(state, noise)


@torch.no_grad()
def players_of(world: WanWorld, count: int) -> list[dict[str, torch.Tensor]]:
    """Steady states of other prompts, each a block further than the one before: their rings stand at other places."""
    players = []
    for number in range(count):
        state = steady_state(world, torch.randn(1, 5, 8))
        for _ in range(number):
            state = block(world, state, torch.randn(1, *world.about.noise_shape))
        players.append(state)
    assert len({int(state["cache.next"]) for state in players}) == count
    return players


def together(players: list[dict]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([np.asarray(state[name]) for state in players]) for name in players[0]}


def assert_close(found: dict, expected: dict, tolerance: float) -> None:
    """Bytes may round to the next one."""
    for name, part in expected.items():
        error = np.abs(np.asarray(part).astype(float) - found[name]).max()
        assert error <= (1 if np.asarray(part).dtype == np.uint8 else tolerance), name


@torch.no_grad()
def test_blocks_of_the_graph_are_those_of_torch(played):
    """Several, on its own state: the ring of the cache goes round."""
    world, expected, model = played
    found = {name: part.numpy() for name, part in expected.items()}
    for number in range(6):
        torch.manual_seed(number)
        noise = torch.randn(1, *world.about.noise_shape)
        expected, found = block(world, expected, noise), run(model, found, noise)
        assert_close(found, expected, 1e-3)


@torch.no_grad()
def test_three_players_of_a_graph_play_as_each_would_alone(played):
    """With prompts, noise and lengths of the game of their own; and as in torch."""
    world, _, model = played
    play, players = opened(model), players_of(world, 3)
    alone, group = players, together(players)
    for _ in range(world.spec.cache.ring + 1):
        noise = torch.randn(3, *world.about.noise_shape)
        group = play(group, noise)
        alone = [play(state, own) for state, own in zip(alone, noise.split(1), strict=True)]
        players = [block(world, state, own) for state, own in zip(players, noise.split(1), strict=True)]
        assert_close(group, together(alone), 1e-5)
        assert_close(group, together(players), 1e-5)


@pytest.mark.parametrize(
    "cache, codec",
    [
        (SinkWindow(window=3), None),
        (RelativeSinkWindow(window=6, sink=2, chunk=2),
         WanVaeSpec(dim=4, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,), mean=(0.0,) * 4,
                    std=(1.0,) * 4)),
    ],
)  # fmt: skip
@torch.no_grad()
def test_other_caches_and_codecs_play_several_players_too(cache, codec):
    world = random_world(replace(SPEC, transformer=replace(SPEC.transformer, layers=1), cache=cache, codec=codec))
    players = players_of(world, 2)
    noise = torch.randn(2, *world.about.noise_shape)
    found = run(export_block(world, players[0]), together(players), noise)
    expected = [block(world, state, own) for state, own in zip(players, noise.split(1), strict=True)]
    assert_close(found, together(expected), 1e-4)


@torch.no_grad()
def test_a_narrow_graph_knows_late_positions(played):
    """fp16 counts to 2048, so angles must not be made of it."""
    world, state, model = played
    late = {name: part.clone() for name, part in state.items()}
    for name in ("cache.next", "cache.frame"):
        late[name] += 10_000
    late["cache.frame"][:, 0] = 0  # the sink
    noise = torch.randn(1, *world.about.noise_shape)
    wide, slim = (run(graph, late, noise)["recent"] for graph in (model, narrow(model, "fp16")))
    assert np.square(wide - slim).mean() < 1e-4 * np.square(wide).mean()


def test_weights_lie_beside_the_graph_so_that_they_may_be_of_any_size(played, tmp_path):
    world, state, model = played
    file = write_block(world, state, tmp_path / "new")
    weights = load_file(tmp_path / "new" / "block.safetensors")
    known = dict([*world.named_parameters(prefix="world"), *world.named_buffers(prefix="world")])
    assert all(torch.equal(part, known[name]) for name, part in weights.items()) and len(weights) > 60
    assert not any(tensor.raw_data for tensor in onnx.load(file, load_external_data=False).graph.initializer)
    noise = torch.randn(1, *world.about.noise_shape)
    found, expected = run(file, state, noise), run(model, state, noise)
    assert all(np.array_equal(found[name], part) for name, part in expected.items())


def test_a_graph_in_a_narrow_type_of_its_own(played, tmp_path):
    """Angles stay float32 in it, too: late positions are told apart."""
    spec, state, model = played[0].spec, dict(played[1]), played[2]
    world = WanWorld(spec).eval().requires_grad_(False)
    world.load_state_dict(played[0].state_dict())
    slim = {name: part.half() if part.dtype == torch.float32 else part for name, part in state.items()}
    file = write_block(world.half(), slim, tmp_path)
    late = [
        {**one, "cache.next": one["cache.next"] + 9_999, "cache.frame": one["cache.frame"] + 9_999}
        for one in (state, slim)
    ]
    noise = torch.randn(1, *world.about.noise_shape)
    wide, narrow_one = run(model, late[0], noise)["recent"], run(file, late[1], noise.half())["recent"]
    assert narrow_one.dtype == np.float16
    assert np.square(wide - narrow_one).mean() < 1e-4 * np.square(wide).mean()


def command(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_an_imported_world_becomes_a_graph_by_the_command(tmp_path, capsys):
    torch.manual_seed(0)
    spec = WanSpec(dim=24, ffn_dim=32, heads=2, layers=1, freq_dim=16, in_channels=4, out_channels=4, text_dim=8)
    save_file(WanTransformer(spec).state_dict(), tmp_path / "longlive.safetensors")
    sizes = ("--heads", 2, "--height", 2, "--width", 4)
    code, _, err = command(capsys, "import", tmp_path / "longlive.safetensors", "--out", tmp_path / "w.world", *sizes)
    assert code == 0, err
    code, out, err = command(capsys, "export", tmp_path / "w.world", "--to", "onnx", "--out", tmp_path / "w", "--json")
    assert code == 0, err
    told = json.loads(out)
    graph = onnx.load(told["out"])  # its weights lie where it says
    assert told["bytes"] == sum(file.stat().st_size for file in (tmp_path / "w").iterdir())
    assert {"noise", "state.kv.self.k", "state.cross.k"} <= {value.name for value in graph.graph.input}
    assert {"next.queue", "next.kv.self.k"} <= {value.name for value in graph.graph.output}
    earlier = Path(__file__).parent / "worlds" / "format1-kv-by-slot.world"
    code, _, err = command(capsys, "export", earlier, "--to", "onnx")
    assert code == 2 and "holds its graphs already" in err


def test_what_is_steered_is_refused():
    spec = WanWorldSpec("guided", SPEC.transformer, SPEC.cache, SPEC.schedule, rows=4, columns=6, guidance=3.0)
    with pytest.raises(SpecError, match="without guidance"):
        export_block(WanWorld(spec), {})


@pytest.mark.parametrize("precision, players", [("fp16", 1), ("bf16", 3)])
def test_an_engine_of_a_small_wan_is_built_without_a_gpu(played, precision, players):
    """That it computes the same, only a machine with a GPU can tell."""
    package = pytest.importorskip("tensorrt_rtx")
    engine = build(played[2], About("0" * 64, "block", precision, players, "tensorrt-rtx", package.__version__))
    assert engine.outputs["next.queue"] == "uint8 [-1, 4, 32, 48, 3]" and "state.kv.self.k" in engine.inputs
    assert engine.types[{"fp16": "HALF", "bf16": "BF16"}[precision]] > 300 and len(engine.data) > 1 << 20

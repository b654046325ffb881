"""A world file can be evaluated as it ships, and begins and plays as the training run that it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gymnasium")
pytest.importorskip("onnxscript")

import torch
from safetensors.torch import save_file
from tiny_world import write_tiny

from export.onnx import export_graphs
from export.quantize import LOCATION, store_weights
from export.ticks import ticks
from export.world_file import write_world
from runtime.cli import main
from runtime.errors import WorldFileError
from runtime.file_world import FileWorld
from runtime.world import World
from worldmodel.prompt import encoder
from worldmodel.spec import CodecSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import World as TorchModel
from worldmodel.tick import state_shapes
from worldmodel.train.playable import TorchWorld

SPEC = WorldSpec(
    name="small", height=32, width=32, tick_hz=25, actions=("left", "right", "gas", "brake"), keys={},
    environment="car_racing", window=2, codec=CodecSpec(channels=4, encoder_width=16, decoder_widths=(16, 8, 8)),
    generator=GeneratorSpec(dim=32, depth=1, heads=2, action_history=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run folder and, in it, the world file made of it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = TorchModel(SPEC)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # what begins at zero must count, too
    (folder / "spec.json").write_text(SPEC.to_json())
    save_file(model.codec.state_dict(), folder / "codec.safetensors")
    save_file({n: t.contiguous() for n, t in model.generator.state_dict().items()}, folder / "world.safetensors")
    slim, weights = store_weights(export_graphs(model).by_name, lambda name: "fp32")
    encoder.PromptEncoder.load().to_onnx(folder / "prompt.onnx")
    files = {f"{name}.onnx": graph.SerializeToString() for name, graph in slim.items()} | {LOCATION: weights}
    files |= {"prompt.onnx": (folder / "prompt.onnx").read_bytes(), "tokenizer.json": encoder.TOKENIZER.read_bytes()}
    graphs = {name: {"file": f"{name}.onnx"} for name in slim}
    graphs["tick_fast"]["noise"] = {"shape": list(ticks(SPEC)["tick_fast"].noise)}
    write_world(folder / "small.world", {
        "name": "small", "title": "Small", "tick_hz": 25, "height": 32, "width": 32, "preview": True, "licence": "MIT",
        "credits": "tests", "trained_on": "nothing", "actions": [{"name": n, "keys": []} for n in SPEC.actions],
        "prompts": [], "default_prompt": "", "default_start": "", "starts": [],
        "state": {n: {"shape": list(s), "dtype": str(d)[6:]} for n, (s, d) in state_shapes(SPEC).items()},
        "noise": {"shape": [SPEC.schedule.noises, *SPEC.latent_shape]}, "prompt": {"shape": [4, 64]},
        "graphs": graphs | {"prompt": {"file": "prompt.onnx", "tokenizer": "tokenizer.json"}},
        "environment": {"id": "CarRacing-v3", "adapter": "car_racing"},
    }, files)  # fmt: skip
    return folder


def test_file_and_run_begin_from_real_frames_alike(run: Path) -> None:
    file = FileWorld(World.open(run / "small.world"), "onnxruntime", threads=1, precision="fp32")
    trained = TorchWorld(run, autocast=False)
    assert file.context == trained.context and file.actions == trained.actions
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, file.context, 32, 32, 3), np.uint8)
    actions = rng.random((2, file.context, 4)) < 0.5
    assert np.abs(file.through_codec(frames[0]).astype(int) - trained.through_codec(frames[0])).max() <= 1
    begun = [world.begin(frames, actions, ["a red road", "blue grass"], 0) for world in (file, trained)]
    for player in range(2):
        for name, tensor in begun[1].state.items():
            assert np.allclose(begun[0].states[player][name], tensor[player : player + 1], atol=1e-4), name
    held = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)
    first, second = begun[0].tick(held), begun[0].tick(held)
    assert first.shape == (2, 32, 32, 3) and not np.array_equal(first, second)
    begun[0].say(["a green road", "blue grass"])
    assert not np.array_equal(begun[0].embeddings[0], begun[0].embeddings[1])


def test_a_world_file_is_evaluated_from_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", str(run / "small.world"), "--ticks", "50", "--rollouts", "1", "--threads", "1", "--json"])
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    assert '"psnr_codec"' in said.out and '"recognised"' in said.out


def test_a_world_without_a_begin_graph_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorldFileError, match="export it again"):
        FileWorld(World.open(write_tiny(tmp_path / "tiny.world")), "onnxruntime")

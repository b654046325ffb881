"""`worldloop import`.

A checkpoint becomes a world that plays; a bad one is refused, nothing executed, nothing huge made.
"""

import json
import pickle
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_streams import ACTIONS

from runtime.cli import main
from runtime.errors import PromptError
from runtime.session import Session
from runtime.world import World
from worldmodel.condition.tracks import TrackHead
from worldmodel.errors import CheckpointError
from worldmodel.families.checkpoint import open_checkpoint
from worldmodel.families.importing import plan_import
from worldmodel.families.tensor_file import read_header
from worldmodel.families.wan_transformer import WanSpec, WanTransformer

torch.set_num_threads(1)
SIZES = ["--heads", "2", "--height", "4", "--width", "6"]
CONFIG = {"num_heads": 2, "latent_height": 4, "latent_width": 6}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    spec = WanSpec(dim=24, ffn_dim=32, heads=2, layers=2, freq_dim=16, in_channels=4, out_channels=4, text_dim=8)
    return {name: torch.randn_like(tensor) * 0.2 for name, tensor in WanTransformer(spec).state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "self_forcing_dmd.pt"
    torch.save({"generator_ema": {f"model.{name}": tensor for name, tensor in weights().items()}}, path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_a_dry_run_says_what_it_is_and_what_it_needs(checkpoint, capsys):
    code, out, _ = run(capsys, "import", checkpoint, "--dry-run", "--json", *SIZES)
    report = json.loads(out)
    assert code == 0 and report["family"] == "self_forcing"
    assert report["parameters"] == sum(tensor.numel() for tensor in weights().values())
    assert report["missing"] == report["unexpected"] == []
    memory = report["memory"]
    assert memory["peak_mb"] > memory["weights_mb"] + memory["state_mb"] > 0
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]  # nothing written


def test_an_import_is_converted_once_and_plays_from_its_file(checkpoint, capsys):
    out = checkpoint.parent / "small.world"
    code, told, _ = run(capsys, "import", checkpoint, "--out", out, "--json", *SIZES)
    assert code == 0, told
    converted = checkpoint.with_suffix(".safetensors")
    assert all(torch.equal(tensor, weights()[name]) for name, tensor in load_file(converted).items())
    stamp = converted.stat().st_mtime_ns
    first = out.read_bytes()
    assert run(capsys, "import", checkpoint, "--out", out, *SIZES)[0] == 0
    assert converted.stat().st_mtime_ns == stamp and out.read_bytes() == first

    sessions = [Session(World.open(out), seed=seed) for seed in (4, 4, 5)]
    frames = [[session.tick() for _ in range(3)] for session in sessions]
    assert frames[0][2].shape == (32, 48, 3)
    assert all((a == b).all() for a, b in zip(frames[0], frames[1], strict=True))
    assert any((a != b).any() for a, b in zip(frames[0], frames[2], strict=True))


def test_keys_that_do_not_fit_are_listed_and_end_in_exit_code_1(checkpoint, capsys):
    spoilt = weights()
    spoilt["blocks.0.ffn.9.weight"] = spoilt.pop("blocks.0.ffn.2.weight")
    spoilt["head.head.bias"] = torch.zeros(3)
    torch.save({"generator_ema": spoilt}, checkpoint)
    code, out, err = run(capsys, "import", checkpoint, "--json", *SIZES)
    report = json.loads(out)
    assert code == 1 and "do not fit" in err and err.count("\n") == 1
    assert report["missing"] == ["transformer.blocks.0.ffn.2.weight"]
    assert report["unexpected"] == ["transformer.blocks.0.ffn.9.weight"]
    assert report["misshaped"] == [{"name": "transformer.head.head.bias", "expected": [16], "found": [3]}]
    assert not checkpoint.with_suffix(".world").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path, capsys):
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    code, _, err = run(capsys, "import", tmp_path / "x.safetensors", "--dry-run")
    assert code == 2 and "of no known family" in err and "conv.weight" in err


@pytest.mark.parametrize(
    "option, wanted",
    [
        (("--codec", "thing.safetensors"), r"thing\.safetensors: Self-Forcing takes Wan's video autoencoder or TAEHV"),
        (("--lora", "thing.safetensors"), r"not a LoRA in PEFT's naming: conv\.weight"),
        (("--text-encoder", "."), r"--text-encoder .*: expected a folder with config\.json"),
        (("--part", "discriminator"), r"has no part 'discriminator'; it has: generator_ema"),
        (("--height", "5"), r"latent size \(5, 6\) must divide by the patch"),
        (("--height", "100000"), r"latent_height must be a whole number from 1 to 65536: got 100000"),
    ],
)
def test_what_does_not_go_with_a_checkpoint_is_refused_at_the_dry_run(checkpoint, capsys, monkeypatch, option, wanted):
    monkeypatch.chdir(checkpoint.parent)
    save_file({"conv.weight": torch.zeros(2)}, "thing.safetensors")
    code, _, err = run(capsys, "import", checkpoint, "--dry-run", *SIZES, *option)
    assert code == 2 and err.count("\n") == 1 and re.search(wanted, err), err


def test_a_text_encoder_of_another_width_is_refused(checkpoint, capsys):
    (checkpoint.parent / "umt5").mkdir()
    (checkpoint.parent / "umt5" / "config.json").write_text('{"d_model": 4096}')
    told = run(capsys, "import", checkpoint, "--dry-run", "--text-encoder", checkpoint.parent / "umt5", *SIZES)
    assert told[0] == 2 and "text embeddings are 4096 wide, the world was made with 8" in told[2]


@pytest.mark.parametrize("heads", ['"two"', "0", "-2", "null", "[2]", "1e9"])
def test_sizes_of_a_strangers_config_are_checked(checkpoint, capsys, heads):
    (checkpoint.parent / "config.json").write_text(f'{{"num_heads": {heads}}}')
    code, _, err = run(capsys, "import", checkpoint, "--dry-run")
    assert code == 2 and "num_heads must be a whole number" in err and err.count("\n") == 1


def test_a_nan_is_found_before_anything_is_written(checkpoint, capsys):
    spoilt = weights()
    spoilt["blocks.1.self_attn.q.bias"][3] = float("nan")
    torch.save({"generator_ema": spoilt}, checkpoint)
    code, _, err = run(capsys, "import", checkpoint, *SIZES)
    assert code == 2 and "blocks.1.self_attn.q.bias' holds NaN" in err
    assert not checkpoint.with_suffix(".world").exists()


class Bomb:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys, packed):
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    if packed:
        torch.save({"generator": weights(), "extra": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"generator": Bomb(mark)}))
    code, _, err = run(capsys, "import", path, "--dry-run")
    assert code == 2 and err.count("\n") == 1 and ("refused, nothing was executed" in err or "not a torch zip" in err)
    assert not mark.exists()


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    """A view with stride 0: a kilobyte on disk, a terabyte once it is made whole."""
    path = tmp_path / "wide.pt"
    torch.save({"generator": {**weights(), "head.head.bias": torch.zeros(1).expand(1 << 38)}}, path)
    with pytest.raises(CheckpointError, match=r"'head\.head\.bias' claims shape \[274877906944\]"):
        open_checkpoint(path)


def test_a_packed_zip_is_refused(checkpoint):
    with zipfile.ZipFile(checkpoint) as source:
        content = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    with pytest.raises(CheckpointError, match="holds more than its size"):
        open_checkpoint(checkpoint)


def header(path: Path, entries: object, body: bytes = b"") -> Path:
    raw = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


@pytest.mark.parametrize(
    "entries, wanted",
    [
        ({"a": {"dtype": "F32", "shape": [1 << 45], "data_offsets": [0, 4]}}, "'a' is malformed"),
        ({"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}, "malformed|needs"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "'a' of shape .2. needs 8 bytes"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "'a' has type F99"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "malformed"),
        ({"a": {"dtype": "F32"}}, "malformed"),
        ({}, "claim 0 bytes and the file holds 4"),
        ([1, 2], "its header is a list"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_read(tmp_path, entries, wanted):
    with pytest.raises(CheckpointError, match=wanted):
        read_header(header(tmp_path / "x.safetensors", entries, b"\0" * 4))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\xff" * 7 + b"\x7f" + b"{}", b"PK\x03\x04nonsense"])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_junk_is_refused_with_one_line(tmp_path, capsys, content, ending):
    path = tmp_path / f"junk.{ending}"
    path.write_bytes(content)
    code, _, err = run(capsys, "import", path, "--dry-run")
    assert code == 2 and err.count("\n") == 1 and "junk" in err


def test_a_codec_of_its_own_is_taken_along(checkpoint, tmp_path):
    from worldmodel.codec.taehv import Taehv, TaehvSpec

    torch.manual_seed(0)
    codec = Taehv(TaehvSpec(decoder_channels=(8, 8, 8, 8), encoder_channels=8, latent_channels=4))
    save_file(codec.state_dict(), tmp_path / "taew.safetensors")
    plan = plan_import(checkpoint, codec=tmp_path / "taew.safetensors", config=CONFIG)
    assert plan.fit.ok
    world = plan.load()
    assert (world.about.tick_hz, world.about.height, world.about.width) == (16.0, 32, 48)
    from worldmodel.families.family import zero_state

    state = world.recache(zero_state(world, 1), torch.zeros(1, *world.about.prompt_shape))
    action, noise = torch.zeros(1, 0), torch.randn(1, *world.about.noise_shape)
    with torch.inference_mode():
        frames = []
        for _ in range(10):
            _, state = world(state, action, torch.zeros(1), noise)
            frames.append(int(state["queue.left"]))
    assert frames == [8, 7, 6, 5, 4, 3, 2, 1, 0, 11]  # nine pictures, the first latent is worth one; then twelve


@pytest.mark.parametrize(
    "family, sizes, key",
    [
        ("minwm", {"camera": True}, "w"),
        ("lingbot_world", {"in_channels": 4 + 4 + 4, "ray_side": 8}, "j"),
        ("matrix_game2", {"in_channels": 4 + 4 + 4, "text_dim": 0, "image_dim": 6, "actions": ACTIONS}, "look_left"),
        ("motion_stream", {"in_channels": 4 + 2}, "draw"),
    ],
)
def test_every_condition_steers_a_world_that_is_played_from_its_file(tmp_path, capsys, family, sizes, key):
    torch.manual_seed(0)
    spec = {"dim": 24, "ffn_dim": 32, "heads": 2, "layers": 2, "freq_dim": 16, "in_channels": 4, "out_channels": 4}
    parts = {"": WanTransformer(WanSpec(**{**spec, "text_dim": 8, **sizes}))}
    if family == "motion_stream":
        parts["track_head."] = TrackHead(8, 2, 4)
    made = {f"{at}{name}": part for at, model in parts.items() for name, part in model.state_dict().items()}
    save_file({name: 0.3 * torch.randn(part.shape) for name, part in made.items()}, tmp_path / "made.safetensors")
    assert run(capsys, "import", tmp_path / "made.safetensors", *SIZES)[0] == 0
    world = World.open(tmp_path / "made.world")
    assert world.manifest.spec["family"] == family
    still, steered = (Session(world, seed=1) for _ in range(2))
    frames = [(still.tick(), steered.tick({key})) for _ in range(12)]
    assert any((one != other).any() for one, other in frames)


def text_encoder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "snow": 2, "lava": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    config = transformers.UMT5Config(vocab_size=4, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.UMT5EncoderModel(config).save_pretrained(folder)
    return folder


def test_a_prompt_typed_while_it_plays_goes_through_the_text_encoder(checkpoint, tmp_path, capsys):
    folder = text_encoder(tmp_path / "umt5")
    out = checkpoint.parent / "told.world"
    assert run(capsys, "import", checkpoint, "--out", out, "--text-encoder", folder, *SIZES)[0] == 0
    plain, turned = (Session(World.open(out), seed=1, prompt="snow") for _ in range(2))
    assert all((plain.tick() == turned.tick()).all() for _ in range(3))
    turned.set_prompt("lava")
    assert any((plain.tick() != turned.tick()).any() for _ in range(3))


def test_world_and_text_encoder_can_be_moved_and_a_lost_one_is_only_missed_by_prompts(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("WORLDLOOP_ENCODERS", raising=False)
    folder = text_encoder(tmp_path / "models" / "umt5")
    out = tmp_path / "worlds" / "told.world"
    assert run(capsys, "import", checkpoint, "--out", out, "--text-encoder", folder, *SIZES)[0] == 0
    frame = Session(World.open(out), prompt="lava").tick()
    assert str(tmp_path) not in World.open(out).manifest.spec["config"]["text_encoder"]

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "worlds").rename(moved / "worlds")
    (tmp_path / "models").rename(moved / "models")
    assert (Session(World.open(moved / "worlds" / "told.world"), prompt="lava").tick() == frame).all()

    alone = tmp_path / "told.world"
    (moved / "worlds" / "told.world").rename(alone)
    Session(World.open(alone)).tick()
    with pytest.raises(PromptError, match=r"'umt5'.*put it beside the world file, or set WORLDLOOP_ENCODERS"):
        Session(World.open(alone), prompt="lava")
    monkeypatch.setenv("WORLDLOOP_ENCODERS", str(moved / "models"))
    assert (Session(World.open(alone), prompt="lava").tick() == frame).all()
    monkeypatch.delenv("WORLDLOOP_ENCODERS")
    (moved / "models" / "umt5").rename(tmp_path / "umt5")
    assert (Session(World.open(alone), prompt="lava").tick() == frame).all()

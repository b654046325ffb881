"""A world starts from a picture: its tokens and channels are those of the public pipelines, and the game shows it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from runtime.cli import main
from runtime.errors import PromptError
from runtime.session import Session
from runtime.world import World
from worldmodel.condition.start_picture import FRAMES, ClipVision, channels, read_picture
from worldmodel.condition.wan_actions import ActionSpec
from worldmodel.errors import CheckpointError, SpecError
from worldmodel.families.golden import deviation, read_case
from worldmodel.families.golden_codecs import taehv_spec, wan_vae_spec
from worldmodel.families.wan_transformer import WanSpec, WanTransformer

Image = pytest.importorskip("PIL.Image")
torch.set_num_threads(1)
GOLDENS = Path(__file__).parent / "goldens"
ACTIONS = ActionSpec(layers=(0,), heads=2, keys=4, mouse=2, embedding=4, mouse_dim=32, keyboard_dim=32)
SIZES = ["--heads", "2", "--height", "4", "--width", "6"]


def codec(name: str):
    from worldmodel.codec.taehv import Taehv
    from worldmodel.codec.wan_vae import WanVae

    case = read_case(GOLDENS / name)
    made = WanVae(wan_vae_spec(case.meta)) if name == "wan_vae_stream" else Taehv(taehv_spec(case.meta))
    made.load_state_dict(case.weights)
    return made.eval().requires_grad_(False), case


@pytest.fixture
def clip(tmp_path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    spec = WanSpec(
        dim=24, ffn_dim=32, heads=2, layers=1, freq_dim=16, in_channels=36, text_dim=0, image_dim=8, actions=ACTIONS
    )
    weights = {
        f"model.{name}": torch.randn_like(part) * 0.2 for name, part in WanTransformer(spec).state_dict().items()
    }
    save_file(weights, tmp_path / "base_distill.safetensors")
    return tmp_path / "base_distill.safetensors"


def picture_file(path: Path, *colours: str) -> Path:
    """Stripes of equal width."""
    picture = Image.new("RGB", (40 * len(colours), 32))
    for number, colour in enumerate(colours):
        picture.paste(colour, (40 * number, 0, 40 * number + 40, 32))
    picture.save(path)
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_the_first_latent_is_that_of_the_public_code():
    made, case = codec("wan_vae_stream")
    found = channels(made, case.inputs["video"][:, 0], 4, 6, mask=4)
    assert found.shape == (1, FRAMES, 20, 4, 6)
    assert found[:, 0, :4].eq(1).all() and not found[:, 1:, :4].any()
    assert deviation(found[:, :1, 4:], case.expected["encode.image_latent"]) < case.tolerance


@pytest.mark.parametrize("name", ["wan_vae_stream", "taehv"])
def test_grey_follows_and_the_last_frame_kept_stands_for_all_later_ones(name):
    made, _ = codec(name)
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 32, 48) * 2 - 1
    found = channels(made, picture, 4, 6, mask=1)[:, :, 1:]
    later = torch.zeros(1, 1 if name == "wan_vae_stream" else 4, 3, 32, 48)
    clip = torch.cat([picture[:, None]] * later.shape[1] + [torch.zeros(1, 4 * (FRAMES + 1), 3, 32, 48)], 1)
    whole = made.encode_video(made.from_signed(clip))  # longer by two frames
    assert torch.allclose(found, whole[:, :FRAMES], atol=1e-5)
    assert torch.allclose(found[:, -1:].expand(-1, 2, -1, -1, -1), whole[:, FRAMES : FRAMES + 2], atol=1e-5)
    assert not torch.allclose(found[:, 1], found[:, -1], atol=1e-3)  # it does remember for a while


def test_a_picture_is_cropped_about_its_middle(tmp_path):
    found = read_picture(picture_file(tmp_path / "flag.png", "red", "lime", "blue"), 16, 16)
    assert found.shape == (1, 3, 16, 16)
    assert found[0, :, 8, 8].tolist() == [-1, 1, -1] and found[0, 0].max() == -1  # no red is left


def test_tokens_come_out_of_the_last_layer_but_one(clip):
    from transformers import CLIPVisionModel

    encoder = ClipVision.load(clip)
    shorter = CLIPVisionModel.from_pretrained(clip)
    shorter.encoder.layers = shorter.encoder.layers[:-1]
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 8, 8) * 2 - 1
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    given = (picture / 2 + 0.5 - mean[:, None, None]) / std[:, None, None]
    found = encoder(picture)
    assert found.shape == (1, encoder.tokens, 8) == (1, 5, 8)
    assert torch.allclose(found, shorter(given).last_hidden_state, atol=1e-5)
    assert encoder(torch.zeros(1, 3, 20, 30)).shape == found.shape


def test_another_model_is_refused_as_image_encoder(tmp_path, clip):
    with pytest.raises(CheckpointError, match="no image encoder in"):
        ClipVision.load(tmp_path)
    save_file({"nothing": torch.zeros(1)}, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not a CLIP vision model: .*is missing"):
        ClipVision.load(clip)


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(SpecError, match=r"x\.png: not a picture"):
        read_picture(tmp_path / "x.png", 8, 8)


def test_pictures_given_at_import_are_starts_of_the_world(checkpoint, clip, tmp_path, capsys):
    red, blue = (picture_file(tmp_path / f"a {colour}.png", colour) for colour in ("red", "blue"))
    vae, out = GOLDENS / "wan_vae_stream" / "weights.safetensors", tmp_path / "game.world"
    images = ["--image", red, "--image", blue, "--image-encoder", clip]
    code, told, err = run(capsys, "import", checkpoint, "--codec", vae, *images, "--out", out, "--json", *SIZES)
    assert code == 0, err
    assert json.loads(told)["starts"] == ["a-red", "a-blue"]
    world = World.open(out)
    assert world.manifest.default_start == "a-red" and world.manifest.prompt == (1, 1)
    sessions = {name: Session(world, seed=1, start=name) for name in (None, "a-red", "a-blue")}
    frames = {name: [session.tick({"w"}) for _ in range(10)] for name, session in sessions.items()}
    assert all((a == b).all() for a, b in zip(frames[None], frames["a-red"], strict=True))
    assert any((a != b).any() for a, b in zip(frames["a-red"], frames["a-blue"], strict=True))
    with pytest.raises(PromptError, match="takes no prompts"):
        sessions[None].set_prompt("snow")

    state = {name: torch.from_numpy(part) for name, part in world.start_state("a-blue").items()}
    encoder, picture = ClipVision.load(clip), read_picture(blue, 32, 48)
    assert torch.equal(state["picture.tokens"], encoder(picture))
    assert torch.allclose(state["picture.channels"], channels(codec("wan_vae_stream")[0], picture, 4, 6, 4), atol=1e-5)


def test_a_world_of_text_and_rays_starts_from_a_picture_without_an_image_encoder(tmp_path, capsys):
    torch.manual_seed(0)
    spec = WanSpec(dim=24, ffn_dim=32, heads=2, layers=1, freq_dim=16, in_channels=36, text_dim=8, ray_side=8)
    weights = {name: torch.randn_like(part) * 0.2 for name, part in WanTransformer(spec).state_dict().items()}
    save_file(weights, tmp_path / "fast.safetensors")
    vae, out = GOLDENS / "wan_vae_stream" / "weights.safetensors", tmp_path / "looked.world"
    images = [part for name in ("red", "blue") for part in ("--image", picture_file(tmp_path / f"{name}.png", name))]
    code, told, err = run(
        capsys, "import", tmp_path / "fast.safetensors", "--codec", vae, *images, "--out", out, "--json", *SIZES
    )
    assert code == 0 and json.loads(told)["family"] == "lingbot_world", err
    frames = [
        [session.tick(keys) for _ in range(10)]
        for session, keys in (
            (Session(World.open(out), start="red"), {"w"}),
            (Session(World.open(out), start="blue"), {"w"}),
            (Session(World.open(out), start="red"), {"j"}),
        )
    ]
    assert any((a != b).any() for a, b in zip(frames[0], frames[1], strict=True))
    assert any((a != b).any() for a, b in zip(frames[0], frames[2], strict=True))


def test_every_frame_of_a_game_has_its_own_channels(checkpoint):
    from worldmodel.families.family import zero_state
    from worldmodel.families.importing import plan_import

    plan = plan_import(checkpoint, config={"num_heads": 2, "latent_height": 4, "latent_width": 6, "image_tokens": 5})
    world = plan.load()
    numbered = torch.arange(float(FRAMES))[None, :, None, None, None].expand(-1, -1, 20, 4, 6)
    state = zero_state(world, 1) | {"picture.channels": numbered}
    state = world.recache(state, torch.zeros(1, 1, 1))
    seen = []
    for _ in range(3 * (1 + FRAMES // 3)):
        _, state = world(
            state, torch.zeros(1, world.about.action_dim), torch.zeros(1), torch.randn(1, *world.about.noise_shape)
        )
        seen = [*seen, *state["recent.channels"][0, :, 0, 0, 0].tolist()]
    assert sorted(set(seen)) == [float(frame) for frame in range(FRAMES)]
    assert state["recent.channels"].min() >= FRAMES - 6  # those of the last frames, which the last kept one ends


@pytest.mark.parametrize("left_out, cure", [("--codec", "give --codec"), ("--image-encoder", "give --image-encoder")])
def test_what_a_picture_needs_is_said(checkpoint, clip, tmp_path, capsys, left_out, cure):
    needed = {"--codec": GOLDENS / "wan_vae_stream" / "weights.safetensors", "--image-encoder": clip}
    given = [part for name, path in needed.items() if name != left_out for part in (name, path)]
    red = picture_file(tmp_path / "red.png", "red")
    code, _, err = run(capsys, "import", checkpoint, "--image", red, *given, *SIZES)
    assert code == 2 and cure in err.splitlines()[-1]
    assert not checkpoint.with_suffix(".world").exists()


def test_a_world_of_text_takes_no_picture(tmp_path, capsys):
    spec = WanSpec(dim=24, ffn_dim=32, heads=2, layers=1, freq_dim=16, in_channels=4, out_channels=4, text_dim=8)
    save_file(WanTransformer(spec).state_dict(), tmp_path / "x.safetensors")
    red = picture_file(tmp_path / "red.png", "red")
    code, _, err = run(capsys, "import", tmp_path / "x.safetensors", "--image", red, *SIZES)
    assert code == 2 and "takes no start picture" in err

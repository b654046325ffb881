"""A public checkpoint is recognised from its file, refused by name if it does not fit, and played in a session."""

import hashlib
import math
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from runtime.backends.imported import imported
from runtime.cli import main
from runtime.errors import PromptError
from runtime.session import Session
from runtime.world import World
from worldmodel.condition.buttons import Button
from worldmodel.errors import CheckpointError, WorldloopError
from worldmodel.families.diamond import DiamondSpec, DiamondWorld
from worldmodel.families.family import FAMILIES, About, build, outline, recognise, zero_state
from worldmodel.families.importing import plan_import
from worldmodel.families.open_oasis import OpenOasisSpec, OpenOasisWorld, even_levels
from worldmodel.families.open_oasis_dit import DitSpec
from worldmodel.families.open_oasis_vae import VitVaeSpec
from worldmodel.families.waypoint import WaypointWorld, WaypointWorldSpec
from worldmodel.families.waypoint_ae import WaypointAeSpec
from worldmodel.families.waypoint_spec import WaypointSpec

DIAMOND = DiamondSpec(
    num_actions=4, cond_channels=8, depths=(1,), channels=(8,), attn_depths=(False,), height=8, width=8
)
OASIS = OpenOasisSpec(
    DitSpec(2, 2, 2, 3, 16, 1, 2, 2.0, 25, 3), VitVaeSpec(3, 8, 8, 4, 16, 1, 2, 16, 1, 2), levels=even_levels(2)
)
WAYPOINT = WaypointWorldSpec(
    WaypointSpec(
        d_model=32, n_heads=2, n_kv_heads=1, n_layers=2, mlp_hidden=32, channels=3, height=2, width=2, n_buttons=256,
        local_window=2, global_window=4, global_pinned_dilation=2, global_attn_period=2, prompt_embedding_dim=16,
        ctrl_conditioning_period=2, prompt_conditioning_period=2, sigmas=(1.0, 0.5, 0.0), noise_hidden=8,
        ctrl_hidden=8, fusion_hidden=8,
    ),
    WaypointAeSpec(3, 3, (8, 24), (1,), (24, 8), (1,), 8, 6, 10),
)  # fmt: skip
WORLDS = {
    "diamond": (DiamondWorld, DIAMOND),
    "open_oasis": (OpenOasisWorld, OASIS),
    "waypoint": (WaypointWorld, WAYPOINT),
}


def weights_of(family: str) -> dict[str, torch.Tensor]:
    """A checkpoint of the family, under the names of its public files."""
    kind, spec = WORLDS[family]
    torch.manual_seed(0)
    tensors = kind(spec).state_dict()
    for prefix in ("dit.", "vae.", "model.", "ae."):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def session_of(family: str, dtype: torch.dtype = torch.float32, **options) -> Session:
    _, spec = WORLDS[family]
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(family).items()}
    playable = build(family, spec, weights, "made up")
    world, backend = imported(family, playable, hash=hashlib.sha256(b"x").hexdigest(), licence=FAMILIES[family].licence)
    return Session(world, backend=backend, **options)


@pytest.mark.parametrize("family", WORLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_session_plays_saves_and_goes_on(family, dtype):
    session = session_of(family, dtype, seed=3)
    button = session.world.manifest.action_names[0]
    session.tick({button})
    saved = session.snapshot()
    frames = [session.tick(), session.tick({button})]
    height, width = session.world.manifest.height, session.world.manifest.width
    assert all(frame.shape == (height, width, 3) and frame.dtype == np.uint8 for frame in frames)

    other = session_of(family, dtype, seed=99)
    other.restore(saved)
    assert all(
        np.array_equal(other.tick(pressed), frame) for pressed, frame in zip([(), {button}], frames, strict=True)
    )


@pytest.mark.parametrize("family", WORLDS)
def test_a_tick_can_be_captured_as_one_graph(family):
    kind, spec = WORLDS[family]
    torch.manual_seed(0)
    world = kind(spec).eval().requires_grad_(False)
    about = world.about
    inputs = (
        torch.rand(1, about.action_dim),
        torch.zeros(1, 3, about.prompt_shape[1]),
        torch.randn(1, *about.noise_shape),
    )
    captured = torch.export.export(world, (zero_state(world, 1), *inputs)).module()
    state = other = zero_state(world, 1)
    for _ in range(3):
        (frame, state), (again, other) = world(state, *inputs), captured(other, *inputs)
        assert (frame.int() - again.int()).abs().max() <= 1


@pytest.mark.parametrize("family", WORLDS)
def test_a_checkpoint_is_recognised_from_its_names(family):
    shapes = {name: tuple(tensor.shape) for name, tensor in weights_of(family).items()}
    found, _ = recognise(shapes, {}, "file")
    assert found == family


def spoilt(weights: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """One to three tensors lost, renamed, or of another shape or type."""
    draw, found = Random(seed), dict(weights)
    for name in draw.sample(sorted(weights), draw.randint(1, 3)):
        tensor = found.pop(name)
        other: dict[str, dict[str, torch.Tensor]] = {
            "lost": {},
            "renamed": {f"{name}x": tensor},
            "a number": {name: torch.zeros(())},
            "empty": {name: torch.zeros([0] * max(1, tensor.ndim))},
            "deeper": {name: tensor[None]},
            "smaller": {name: torch.zeros([max(1, side // 2) for side in tensor.shape])},
            "whole numbers": {name: torch.zeros(tensor.shape, dtype=torch.int64)},
        }
        found |= other[draw.choice(sorted(other))]
    return found


@pytest.mark.parametrize("family", WORLDS)
def test_a_spoilt_checkpoint_is_an_error_of_ours_and_a_whole_one_is_planned_before_it_is_read(family, tmp_path):
    whole = {name: tensor.clone() for name, tensor in weights_of(family).items()}  # files share no memory
    path = tmp_path / "file.safetensors"
    save_file(whole, path)
    plan = plan_import(path)
    assert plan.family == family and plan.fit.ok
    for seed in range(30):
        save_file(spoilt(whole, seed), path)
        try:
            plan = plan_import(path)
            assert plan.about and plan.memory()
            plan.load()
        except WorldloopError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert plan.fit.ok  # what was lost is not needed


@pytest.mark.parametrize("family", WORLDS)
def test_an_import_plays_from_its_file(family, tmp_path):
    save_file({name: tensor.clone() for name, tensor in weights_of(family).items()}, tmp_path / "file.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "file.safetensors")])
    assert not ended.value.code
    world = World.open(tmp_path / "file.world")
    frame = Session(world).tick(world.manifest.action_names[:1])
    assert frame.shape == (world.manifest.height, world.manifest.width, 3)


@pytest.mark.parametrize("family", WORLDS)
def test_a_world_starts_from_a_picture(family):
    kind, spec = WORLDS[family]
    torch.manual_seed(0)
    world = kind(spec).eval().requires_grad_(False)
    about, frames = world.about, []
    for bright in (-1.0, 1.0):
        start = world.start_from(torch.full((1, 3, about.height, about.width), bright), None)
        shapes = world.state_shapes()
        assert {name: (tuple(part.shape), part.dtype) for name, part in start.items()}.items() <= shapes.items()
        noise = torch.randn(1, *about.noise_shape, generator=torch.Generator().manual_seed(0))
        state = {**zero_state(world, 1), **start}
        frame, _ = world(state, torch.zeros(1, about.action_dim), torch.zeros(1, 3, about.prompt_shape[1]), noise)
        frames.append(frame)
    assert not torch.equal(*frames)


def test_a_checkpoint_of_no_known_family_says_which_there_are():
    with pytest.raises(CheckpointError, match=r"thing\.safetensors: of no known family \(.*waypoint"):
        recognise({"encoder.weight": (3, 3)}, {}, "thing.safetensors")


@pytest.mark.parametrize("family", WORLDS)
def test_weights_that_do_not_fit_are_named(family):
    weights = weights_of(family)
    lost, bent = list(weights)[-1], next(name for name in weights if name.endswith("bias"))
    with pytest.raises(CheckpointError, match=f"missing.*{lost}"):
        build(family, WORLDS[family][1], {name: tensor for name, tensor in weights.items() if name != lost}, "file")
    with pytest.raises(CheckpointError, match=f"mis-shaped.*{bent}"):
        build(family, WORLDS[family][1], {**weights, bent: torch.zeros(1, 2, 3)}, "file")
    with pytest.raises(CheckpointError, match=f"{bent}.*NaN"):
        build(family, WORLDS[family][1], {**weights, bent: weights[bent] * math.nan}, "file")


@pytest.mark.parametrize(
    "family, spec, millions", [("diamond", DiamondSpec(num_actions=4), 4.4), ("waypoint", WaypointWorldSpec(), 2300)]
)
def test_the_published_worlds_have_their_published_sizes(family, spec, millions):
    """Given are 4.4 million parameters for DIAMOND's denoiser, 2.3 billion for Waypoint-1-Small without its codec."""
    parts = dict(outline(family, spec).named_children())
    generator = next(iter(parts.values()))
    assert sum(tensor.numel() for tensor in generator.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_what_a_button_means_is_one_number_of_the_action():
    buttons = (Button("left", (), 1, -0.5), Button("right", (), 1, 0.5), Button("go", (), 2))
    about = About("t", 20.0, 8, 8, buttons, action_dim=4, noise_shape=(1, 1, 1, 1), prompt_shape=(1, 1))
    assert about.action(torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])).tolist() == [[0, -0.5, 1, 0], [0, 0, 0, 0]]


def test_prompts_are_refused_with_the_reason():
    with pytest.raises(PromptError, match="takes no prompts"):
        session_of("diamond", prompt="a red ball")
    with pytest.raises(PromptError, match="text encoder"):
        session_of("waypoint").set_prompt("a red ball")

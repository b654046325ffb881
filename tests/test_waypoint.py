"""Waypoint-1 gives the public engine's frames, plays through the tick, and is recognised from its files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from worldmodel.errors import CheckpointError, SpecError
from worldmodel.families.family import State, zero_state
from worldmodel.families.golden import check, read_case
from worldmodel.families.waypoint import WaypointWorld, WaypointWorldSpec, keep, matches, rename, visible
from worldmodel.families.waypoint_ae import WaypointAeSpec, fuse
from worldmodel.families.waypoint_spec import WaypointSpec, spec_of
from worldmodel.families.waypoint_transformer import WaypointTransformer

GOLDENS = Path(__file__).parent / "goldens"
SMALL = WaypointSpec(
    d_model=32,
    n_heads=2,
    n_kv_heads=1,
    n_layers=2,
    mlp_hidden=64,
    channels=3,
    height=2,
    width=2,
    n_buttons=4,
    local_window=3,
    global_window=8,
    global_pinned_dilation=2,
    global_attn_period=2,
    value_residual=True,
    ctrl_conditioning_period=2,
    prompt_conditioning_period=2,
    prompt_embedding_dim=16,
    sigmas=(1.0, 0.5, 0.0),
    noise_hidden=16,
    ctrl_hidden=8,
    fusion_hidden=8,
)
SMALL_AE = WaypointAeSpec(
    latent_channels=3,
    encoder_widths=(8, 24),
    encoder_blocks=(1,),
    decoder_widths=(24, 8),
    decoder_blocks=(1,),
    side=8,
    height=6,
    width=10,
)


@pytest.fixture(scope="module")
def world() -> WaypointWorld:
    torch.manual_seed(0)
    world = WaypointWorld(WaypointWorldSpec(SMALL, SMALL_AE)).eval().requires_grad_(False)
    torch.nn.init.constant_(world.model.transformer.blocks[1].attn.v_lamb, 0.3)
    return world


def play(world: WaypointWorld, state: State, ticks: int, seed: int = 1, prompt: float = 0.5) -> State:
    """`ticks` ticks under keys and noise that depend on the frame's number, so that any split plays the same game."""
    rows = torch.full((1, 3, 16), prompt)
    for _ in range(ticks):
        generator = torch.Generator().manual_seed(1000 * seed + int(state["frame"][0]))
        action, noise = torch.rand(1, 7, generator=generator), torch.randn(1, 1, 3, 4, 4, generator=generator)
        _, state = world(state, action, rows, noise)
    return state


@pytest.mark.parametrize("case", ["waypoint", "waypoint_ae"])
def test_it_gives_what_the_public_engine_gave(case):
    verdict = check(read_case(GOLDENS / case))
    assert verdict.ok, verdict.errors


@pytest.mark.parametrize(
    "frame, local, every_second",
    [(0, [], []), (1, [0], [0]), (2, [0, 1], [0]), (3, [1, 2], [0, 2]), (4, [2, 3], [0, 2]), (8, [6, 7], [2, 4, 6]),
     (9, [7, 8], [2, 4, 6, 8])],
)  # fmt: skip
def test_a_frame_sees_kept_frames_but_not_the_slot_it_will_take(world, frame, local, every_second):
    """Rings of 3 frames, and of 4 that hold every second frame."""
    # A frame's number is written into the ring where its keys would go.
    state = zero_state(world, 1)
    for number in range(frame):
        stamp = torch.full((1, 4, 1, 16), float(number))
        state = keep(SMALL, state, [(stamp, stamp), (stamp, stamp)])
    for layer, expected in ((1, local), (0, every_second)):
        seen = state[f"kv.{layer}"][0, 0, :, 0, 0, 0][visible(SMALL, state["frame"], layer)[0]]
        assert sorted(seen.tolist()) == expected


def test_players_at_different_times_share_a_batch(world):
    alone = [play(world, zero_state(world, 1), frames, seed=frames) for frames in (0, 1, 7)]
    together = {name: torch.cat([state[name] for state in alone]) for name in alone[0]}
    action, prompt = torch.rand(3, 7), torch.randn(3, 3, 16)
    noise = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    _, both = world(together, action, prompt, noise)
    for player, state in enumerate(alone):
        one = slice(player, player + 1)
        _, expected = world(state, action[one], prompt[one], noise[one])
        for name in expected:
            torch.testing.assert_close(both[name][one], expected[name])


def test_a_game_goes_on_from_a_saved_state(world):
    whole = play(world, zero_state(world, 1), 6)
    half = load(save(play(world, zero_state(world, 1), 3)))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in play(world, half, 3).items())


def test_keys_mouse_and_prompt_change_the_frame(world):
    state, noise = play(world, zero_state(world, 1), 2), torch.zeros(1, 1, 3, 4, 4)
    prompts, actions = torch.full((1, 3, 16), 0.5), torch.zeros(1, 7)
    plain, _ = world(state, actions, prompts, noise)
    for changed in (actions.index_fill(1, torch.tensor([0]), 1.0), actions.index_fill(1, torch.tensor([3]), 1.0)):
        assert not torch.equal(world(state, changed, prompts, noise)[0], plain)
    assert not torch.equal(world(state, actions, torch.arange(48.0).view(1, 3, 16), noise)[0], plain)


def test_the_game_outlasts_the_public_position_table(world):
    """The public engine's table of positions ends at frame 4096; here a position is a number."""
    after = play(world, {**play(world, zero_state(world, 1), 8), "frame": torch.tensor([5000])}, 3)
    assert after["frame"].tolist() == [5003]
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_pictures_start_a_game(world):
    pictures = torch.randint(0, 256, (1, 2, 6, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    state = world.start(pictures, torch.zeros(1, 2, 7), torch.zeros(1, 3, 16))
    frame, state = world(state, torch.zeros(1, 7), torch.zeros(1, 3, 16), torch.zeros(1, 1, 3, 4, 4))
    assert frame.shape == (1, 6, 10, 3)
    assert state["frame"].tolist() == [3]


def test_a_world_without_prompt_and_controller_plays():
    without = {"ctrl_conditioning_period": None, "prompt_conditioning_period": None, "noise_conditioning": "dit"}
    spec = replace(SMALL, gated_attn=False, value_residual=False, **without)
    world = WaypointWorld(WaypointWorldSpec(spec, SMALL_AE)).eval().requires_grad_(False)
    assert play(world, zero_state(world, 1), 2)["frame"].tolist() == [2]


def test_the_published_sizes_are_recognised():
    with torch.device("meta"):
        world = WaypointWorld(WaypointWorldSpec())
    public = {name.removeprefix("model.").removeprefix("ae."): shape for name, shape in shapes_of(world).items()}
    assert matches(public, {}) == WaypointWorldSpec()


def test_what_no_shape_tells_comes_from_the_config():
    model = WaypointTransformer(SMALL)
    rings = {"local_window": 3, "global_window": 8, "global_pinned_dilation": 2, "global_attn_period": 2}
    config = {"height": 2, "width": 2, "scheduler_sigmas": [1.0, 0.5, 0.0], **rings}
    assert spec_of(shapes_of(model), config) == SMALL


def test_another_familys_file_is_not_recognised():
    assert matches({"patch_embedding.weight": (1536, 16, 1, 2, 2)}, {}) is None


def test_public_names_become_the_modules(world):
    weights = {name.removeprefix("model.").removeprefix("ae."): tensor for name, tensor in world.state_dict().items()}
    assert set(rename(weights)) == set(world.state_dict())


def test_shared_matrices_that_differ_are_refused(world):
    weights = {name.removeprefix("model."): tensor for name, tensor in world.state_dict().items()}
    name = "transformer.blocks.1.cond_head.cond_proj.3.weight"
    with pytest.raises(CheckpointError, match=name):
        rename({**weights, name: weights[name] + 1})


def test_generator_and_autoencoder_of_different_worlds_are_refused():
    with pytest.raises(SpecError, match="not of one world"):
        WaypointWorldSpec(SMALL, WaypointAeSpec())


def test_weight_normalised_convolutions_are_multiplied_out():
    normalised = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 5, 3))
    torch.nn.init.uniform_(normalised.parametrizations.weight.original0)
    fused = fuse({f"conv.{name}": tensor.detach() for name, tensor in normalised.state_dict().items()})
    torch.testing.assert_close(fused["conv.weight"], normalised.weight.detach())
    assert sorted(fused) == ["conv.bias", "conv.weight"]


@pytest.mark.parametrize("wrong", [{"sigmas": (0.5, 1.0, 0.0)}, {"n_kv_heads": 3}, {"noise_conditioning": "cosine"}])
def test_a_spec_that_cannot_be_is_refused(wrong):
    with pytest.raises(SpecError, match="waypoint"):
        replace(SMALL, **wrong)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

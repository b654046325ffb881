"""Open-Oasis gives the public code's frames, plays through the tick, and is recognised from its files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from worldmodel.errors import SpecError
from worldmodel.families.family import State, zero_state
from worldmodel.families.golden import check, read_case
from worldmodel.families.open_oasis import OpenOasisSpec, OpenOasisWorld, even_levels, matches, remember, rename
from worldmodel.families.open_oasis_dit import DitSpec
from worldmodel.families.open_oasis_vae import VitVaeSpec

SMALL = OpenOasisSpec(
    dit=DitSpec(
        latent_height=2,
        latent_width=4,
        in_channels=3,
        hidden_size=16,
        depth=2,
        num_heads=2,
        external_cond_dim=5,
        max_frames=4,
    ),
    vae=VitVaeSpec(
        latent_dim=3,
        input_height=8,
        input_width=16,
        patch_size=4,
        enc_dim=16,
        enc_depth=1,
        enc_heads=2,
        dec_dim=32,
        dec_depth=1,
        dec_heads=2,
    ),
    levels=even_levels(2),
)


@pytest.fixture(scope="module")
def world() -> OpenOasisWorld:
    torch.manual_seed(0)
    return OpenOasisWorld(SMALL).eval().requires_grad_(False)


def after(world: OpenOasisWorld, frames: int, seed: int = 1) -> State:
    """The state after `frames` made-up clean frames."""
    generator, state = torch.Generator().manual_seed(seed), zero_state(world, 1)
    for _ in range(frames):
        state = remember(state, torch.randn(1, 3, 2, 4, generator=generator), torch.rand(1, 5, generator=generator))
    return state


def play(world: OpenOasisWorld, state: State, seed: int, players: int = 1) -> tuple[torch.Tensor, State]:
    generator = torch.Generator().manual_seed(seed)
    action, noise = torch.rand(1, 5, generator=generator), torch.randn(1, 1, 3, 2, 4, generator=generator)
    return world(state, action.expand(players, -1), torch.empty(0), noise.expand(players, -1, -1, -1, -1))


def test_it_gives_the_frames_of_the_public_code():
    verdict = check(read_case(Path(__file__).parent / "goldens" / "open_oasis"))
    assert verdict.ok, verdict.errors


def test_players_at_different_times_share_a_batch(world):
    alone = [after(world, frames, seed=frames) for frames in (0, 1, 9)]
    together = {name: torch.cat([state[name] for state in alone]) for name in alone[0]}
    _, both = play(world, together, seed=5, players=3)
    for player, state in enumerate(alone):
        _, expected = play(world, state, seed=5)
        torch.testing.assert_close(both["latents"][player : player + 1, -1], expected["latents"][:, -1])


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_a_clean_frame_matters_until_it_leaves_the_window(world, frames):
    """The window holds the new frame and three before it."""
    _, changed = play(world, {**after(world, 1, seed=2), "frame": torch.tensor([1])}, seed=3)
    _, plain = play(world, after(world, 1, seed=4), seed=3)
    for step in range(frames):
        filler = after(world, 1, seed=10 + step)
        latent, action = filler["latents"][:, -1], filler["actions"][:, -1]
        changed, plain = remember(changed, latent, action), remember(plain, latent, action)
    same = torch.equal(play(world, changed, seed=3)[0], play(world, plain, seed=3)[0])
    assert same == (frames >= 3)


def test_a_game_goes_on_from_a_saved_state(world):
    _, state = play(world, after(world, 2), seed=1)
    assert torch.equal(play(world, load(save(state)), seed=2)[0], play(world, state, seed=2)[0])


def test_the_last_action_changes_the_frame(world):
    state, noise = after(world, 2), torch.zeros(1, 1, 3, 2, 4)
    still, moving = (world(state, torch.full((1, 5), pressed), torch.empty(0), noise)[1] for pressed in (0.0, 1.0))
    assert not torch.allclose(still["latents"], moving["latents"])


def test_pictures_start_a_game(world):
    pictures = torch.randint(0, 256, (1, 2, 8, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    state = world.start(pictures, torch.zeros(1, 2, 5))
    assert state["frame"].tolist() == [2]
    assert state["latents"][0, 0].abs().max() == 0
    expected = world.vae.encode(pictures[0].movedim(-1, -3) / 127.5 - 1)
    torch.testing.assert_close(state["latents"][0, 1:], expected)


def test_the_published_files_are_recognised_with_their_sizes():
    with torch.device("meta"):
        world = OpenOasisWorld(OpenOasisSpec())
    public = {
        name.removeprefix("dit.").removeprefix("vae."): tuple(tensor.shape)
        for name, tensor in world.state_dict().items()
    }
    assert matches(public, {}) == OpenOasisSpec()


def test_public_names_become_the_modules_and_repeated_frequencies_are_dropped(world):
    weights = {name.removeprefix("dit.").removeprefix("vae."): tensor for name, tensor in world.state_dict().items()}
    weights["blocks.1.s_attn.rotary_emb.freqs"] = weights["blocks.0.s_attn.rotary_emb.freqs"]
    assert set(rename(weights)) == set(world.state_dict())


def test_another_familys_file_is_not_recognised():
    assert matches({"patch_embedding.weight": (1536, 16, 1, 2, 2)}, {}) is None


@pytest.mark.parametrize("levels", [(999, 500), (10, 500, -1), (1000, -1), (-1,)])
def test_levels_that_do_not_fall_to_clean_are_refused(levels):
    with pytest.raises(SpecError, match=r"open_oasis\.levels"):
        OpenOasisSpec(levels=levels)

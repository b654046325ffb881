"""DIAMOND gives the public code's frames, plays through the tick, and is recognised from its file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from worldmodel.families.diamond import DiamondSpec, DiamondWorld, from_bytes, matches, rename, to_bytes, to_levels
from worldmodel.families.family import zero_state
from worldmodel.families.golden import check, read_case
from worldmodel.families.golden_diamond import spec_of

GOLDEN = Path(__file__).parent / "goldens" / "diamond_step"
SMALL = DiamondSpec(
    num_actions=5,
    num_steps_conditioning=2,
    cond_channels=8,
    depths=(1, 1),
    channels=(8, 16),
    attn_depths=(False, True),
    height=7,
    width=5,
)


@pytest.fixture(scope="module")
def world() -> DiamondWorld:
    torch.manual_seed(0)
    world = DiamondWorld(SMALL).eval().requires_grad_(False)
    torch.nn.init.normal_(world.denoiser.inner_model.noise_emb.weight)
    return world


def pressed(*actions: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(actions), SMALL.num_actions).float()


def noise(seed: int, players: int = 1) -> torch.Tensor:
    return torch.randn(players, 1, 3, 7, 5, generator=torch.Generator().manual_seed(seed))


def test_it_gives_the_frames_of_the_public_code():
    verdict = check(read_case(GOLDEN))
    assert verdict.ok, verdict.errors


def test_players_in_a_batch_play_as_if_alone(world):
    pictures = torch.randint(0, 256, (2, 2, 7, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    both, after = world(world.start(pictures), pressed(1, 3), torch.empty(0), noise(1, players=2))
    for player, action in enumerate((1, 3)):
        alone = world.start(pictures[player : player + 1])
        frame, _ = world(alone, pressed(action), torch.empty(0), noise(1, players=2)[player : player + 1])
        assert torch.equal(frame, both[player : player + 1])
    assert after["actions"].tolist() == [[1], [3]]


def test_a_game_goes_on_from_a_saved_state(world):
    _, state = world(zero_state(world, 1), pressed(2), torch.empty(0), noise(1))
    restored = load(save(state))
    frame, _ = world(state, pressed(4), torch.empty(0), noise(2))
    assert torch.equal(world(restored, pressed(4), torch.empty(0), noise(2))[0], frame)


def test_nothing_pressed_is_action_zero(world):
    nothing, zero = torch.zeros(1, SMALL.num_actions), pressed(0)
    frames = [world(zero_state(world, 1), action, torch.empty(0), noise(1))[0] for action in (nothing, zero)]
    assert torch.equal(*frames)


@pytest.mark.parametrize("given, remembered", [(1, [10, 10]), (2, [10, 20]), (3, [20, 30])])
def test_a_start_takes_the_latest_pictures_and_repeats_the_first(world, given, remembered):
    pictures = torch.tensor([10, 20, 30], dtype=torch.uint8)[:given].view(1, -1, 1, 1, 1).expand(1, given, 7, 5, 3)
    state = world.start(pictures)
    assert state["pictures"][0, :, 0, 0, 0].tolist() == remembered


def test_pictures_are_remembered_as_they_were_shown():
    """All 256 levels survive the way to bytes and back; what lies outside is clamped."""
    levels = to_levels(torch.linspace(-1.2, 1.2, 2000)).view(1, 1, 1, -1).unique().view(1, 1, 1, -1)
    assert levels.numel() == 256
    torch.testing.assert_close(from_bytes(to_bytes(levels)), levels)


def test_two_heun_steps_look_twice_where_euler_looks_once():
    """One step from a level to a lower one; the last step, to 0, is Euler's in both."""
    looks = {}
    for order in (1, 2):
        world = DiamondWorld(DiamondSpec(**{**vars(SMALL), "order": order, "num_steps": 2})).eval()
        seen = []
        world.denoiser.inner_model.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        world(zero_state(world, 1), pressed(0), torch.empty(0), noise(1))
        looks[order] = len(seen)
    assert looks == {1: 2, 2: 3}


def test_an_agents_file_is_recognised_with_its_sizes():
    case = read_case(GOLDEN)
    found = matches({f"denoiser.{name}": tuple(tensor.shape) for name, tensor in case.weights.items()}, {})
    # What no shape tells (picture size, noise levels) has the published values.
    assert found == DiamondSpec(**{**vars(spec_of(case.meta)), "height": 64, "width": 64})


def test_another_familys_file_is_not_recognised():
    assert matches({"patch_embedding.weight": (1536, 16, 1, 2, 2)}, {}) is None


def test_only_the_denoiser_of_an_agents_file_is_kept():
    one = torch.ones(1)
    names = ("denoiser.inner_model.conv_in.bias", "rew_end_model.conv.bias", "actor_critic.lstm.bias")
    assert list(rename(dict.fromkeys(names, one))) == [names[0]]

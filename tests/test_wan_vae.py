"""The Wan video autoencoder equals the public one, and its stream is plain state."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from worldmodel.codec.streaming import without_lead
from worldmodel.codec.wan_vae import WanVae, WanVaeSpec, matches
from worldmodel.errors import SpecError
from worldmodel.families.golden import check, read_case

SMALL = WanVaeSpec(
    dim=4,
    z_dim=3,
    dim_mult=(1, 2, 2),
    num_res_blocks=1,
    temporal_downsample=(True, True),
    mean=(0.1, 0.0, 0.3),
    std=(1.0, 2.0, 3.0),
)


@pytest.fixture(scope="module")
def codec() -> WanVae:
    torch.manual_seed(0)
    return WanVae(SMALL).eval().requires_grad_(False)


def latents(frames: int, players: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(players, frames, 3, 3, 2, generator=torch.Generator().manual_seed(seed))


def test_it_gives_the_pictures_and_latents_of_the_public_code():
    verdict = check(read_case(Path(__file__).parent / "goldens" / "wan_vae_stream"))
    assert verdict.ok, verdict.errors


@pytest.mark.parametrize("portions", [[5], [1, 4], [2, 2, 1], [1, 1, 1, 1, 1]])
def test_pictures_do_not_depend_on_the_portions(codec, portions):
    whole, last = codec.decode(latents(5), codec.empty_state(1, 3, 2))
    state, pictures = codec.empty_state(1, 3, 2), []
    for portion in latents(5).split(portions, dim=1):
        made, state = codec.decode(portion, state)
        pictures.append(made)
    assert torch.equal(torch.cat(pictures, dim=1), whole)
    assert all(torch.equal(state[name], last[name]) for name in last)


def test_the_first_latent_frame_is_one_picture_and_every_later_one_four(codec):
    pictures, state = codec.decode(latents(3), codec.empty_state(1, 3, 2))
    assert pictures.shape == (1, 12, 3, 12, 8)
    assert all(torch.equal(pictures[:, 0], pictures[:, copy]) for copy in range(1, 4))
    assert without_lead(pictures, torch.tensor([True]), codec.growth).shape[1] == 1 + 2 * 4
    assert without_lead(pictures, state["decoder.phase"] == 0, codec.growth).shape[1] == 12


def test_a_stream_goes_on_from_a_saved_state(codec):
    _, state = codec.decode(latents(2), codec.empty_state(1, 3, 2))
    restored = load(save(state))
    assert torch.equal(codec.decode(latents(2, seed=2), restored)[0], codec.decode(latents(2, seed=2), state)[0])


def test_players_at_different_points_share_a_batch(codec):
    """One has just started, one has had its first latent frame, one is far along."""
    alone = []
    for had in (0, 1, 3):
        state = codec.empty_state(1, 3, 2)
        if had:
            _, state = codec.decode(latents(had, seed=had), state)
        alone.append(state)
    together = {name: torch.cat([state[name] for state in alone]) for name in alone[0]}
    pictures, after = codec.decode(latents(2, players=3), together)
    for player, state in enumerate(alone):
        expected, expected_after = codec.decode(latents(2, players=3)[player : player + 1], state)
        torch.testing.assert_close(pictures[player : player + 1], expected)
        assert after["decoder.phase"][player] == expected_after["decoder.phase"]


def test_a_captured_decoder_serves_starting_and_running_streams(codec):
    """A graph cannot ask whether a stream is starting: it must do right by both."""

    class Decode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.codec = codec

        def forward(self, latents, state):
            return self.codec.decode(latents, state)

    state = codec.empty_state(1, 3, 2)
    captured = torch.export.export(Decode(), (latents(1), state)).module()
    for seed in range(3):
        expected, after = codec.decode(latents(1, seed=seed), state)
        pictures, state = captured(latents(1, seed=seed), state)
        torch.testing.assert_close(pictures, expected)
        assert torch.equal(state["decoder.phase"], after["decoder.phase"])


def test_encoding_in_portions_equals_encoding_at_once(codec):
    video = torch.rand(2, 9, 3, 12, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    whole = codec.encode_video(video)
    state = codec.empty_encoder_state(2, 3, 2)
    lead = torch.zeros(2, 3, 3, 12, 8)  # of the first group only the last picture counts
    first, state = codec.encode(torch.cat([lead, video[:, :1]], dim=1), state)
    rest, _ = codec.encode(video[:, 1:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole)
    torch.testing.assert_close(codec.encode_video(video[1:]), whole[1:])


def test_the_callers_state_stays_as_it_was(codec):
    state = codec.empty_state(1, 3, 2)
    before = {name: tensor.clone() for name, tensor in state.items()}
    codec.decode(latents(2), state)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_pictures_that_fill_no_group_are_refused(codec):
    with pytest.raises(SpecError, match="groups of 4"):
        codec.encode(torch.zeros(1, 3, 3, 12, 8), codec.empty_encoder_state(1, 3, 2))


def test_bytes_are_clamped_and_rounded(codec):
    pictures = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(5, 1, 1, 1).expand(-1, 3, 1, 1)
    assert codec.to_bytes(pictures)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    "spec", [WanVaeSpec(), WanVaeSpec(dim=8, dim_mult=(1, 2, 3), num_res_blocks=1, temporal_downsample=(True, False))]
)
def test_a_public_file_is_recognised_with_its_sizes(spec):
    with torch.device("meta"):
        codec = WanVae(spec)
    assert matches({name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}) == spec
    assert matches({"patch_embedding.weight": (1536, 16, 1, 2, 2)}) is None

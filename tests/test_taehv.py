"""The tiny video autoencoder equals the public one, and its stream is plain state."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from worldmodel.codec.taehv import Taehv, TaehvSpec, matches
from worldmodel.errors import SpecError
from worldmodel.families.golden import check, read_case

SMALL = TaehvSpec(decoder_channels=(8, 6, 5, 4), encoder_channels=4, latent_channels=3, patch_size=2)


@pytest.fixture(scope="module")
def codec() -> Taehv:
    torch.manual_seed(0)
    return Taehv(SMALL).eval().requires_grad_(False)


def latents(frames: int, players: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(players, frames, 3, 3, 2, generator=torch.Generator().manual_seed(seed))


def test_it_gives_the_pictures_and_latents_of_the_public_code():
    verdict = check(read_case(Path(__file__).parent / "goldens" / "taehv"))
    assert verdict.ok, verdict.errors


@pytest.mark.parametrize("portions", [[1, 4], [2, 2, 1], [1, 1, 1, 1, 1]])
def test_pictures_do_not_depend_on_the_portions(codec, portions):
    whole, _ = codec.decode(latents(5), codec.empty_state(1, 3, 2))
    state, pictures = codec.empty_state(1, 3, 2), []
    for portion in latents(5).split(portions, dim=1):
        made, state = codec.decode(portion, state)
        pictures.append(made)
    torch.testing.assert_close(torch.cat(pictures, dim=1), whole)
    assert whole.shape == (1, 20, 3, 48, 32)


def test_a_stream_goes_on_from_a_saved_state(codec):
    _, state = codec.decode(latents(2), codec.empty_state(1, 3, 2))
    restored = load(save(state))
    assert torch.equal(codec.decode(latents(2, seed=2), restored)[0], codec.decode(latents(2, seed=2), state)[0])


def test_players_at_different_points_share_a_batch(codec):
    fresh = codec.empty_state(1, 3, 2)
    _, late = codec.decode(latents(3, seed=2), fresh)
    together = {name: torch.cat([fresh[name], late[name]]) for name in fresh}
    pictures, _ = codec.decode(latents(2, players=2), together)
    for player, state in enumerate((fresh, late)):
        torch.testing.assert_close(
            pictures[player : player + 1], codec.decode(latents(2, players=2)[player : player + 1], state)[0]
        )


def test_encoding_in_portions_equals_encoding_at_once(codec):
    video = torch.rand(1, 8, 3, 48, 32, generator=torch.Generator().manual_seed(3))
    first, state = codec.encode(video[:, :4], codec.empty_encoder_state(1, 3, 2))
    second, _ = codec.encode(video[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), codec.encode_video(video))


def test_a_last_group_is_filled_with_its_last_picture(codec):
    video = torch.rand(1, 5, 3, 48, 32, generator=torch.Generator().manual_seed(3))
    filled = torch.cat([video, video[:, -1:].expand(-1, 3, -1, -1, -1)], dim=1)
    assert torch.equal(codec.encode_video(video), codec.encode_video(filled))


def test_a_preview_decoder_may_make_fewer_pictures_than_a_latent_took():
    torch.manual_seed(0)
    preview = (
        Taehv(TaehvSpec((8, 6, 5, 4), 4, 3, decoder_time_upscale=(False, False, True))).eval().requires_grad_(False)
    )
    encoded = preview.encode_video(torch.rand(1, 8, 3, 24, 16))
    assert encoded.shape == (1, 2, 3, 3, 2)
    assert preview.decode(encoded, preview.empty_state(1, 3, 2))[0].shape == (1, 4, 3, 24, 16)


def test_pictures_that_fill_no_group_are_refused(codec):
    with pytest.raises(SpecError, match="groups of 4"):
        codec.encode(torch.zeros(1, 3, 3, 48, 32), codec.empty_encoder_state(1, 3, 2))


@pytest.mark.parametrize(
    "spec", [TaehvSpec(), TaehvSpec(decoder_channels=(16, 8, 8, 4), latent_channels=48, patch_size=2)]
)
def test_a_public_file_is_recognised_with_its_sizes(spec):
    with torch.device("meta"):
        codec = Taehv(spec)
    assert matches({name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}) == spec
    assert matches({"patch_embedding.weight": (1536, 16, 1, 2, 2)}) is None

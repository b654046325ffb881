"""DIAMOND trained from nothing: the loss is EDM's, what it learns from is what was recorded, and it plays what it was
taught."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from small_recording import recorded

from worldmodel.errors import CheckpointError, DatasetError
from worldmodel.families.diamond import DiamondSpec, preconditioning, to_levels
from worldmodel.train.dataset import Arrays, Dataset
from worldmodel.train.diamond import (
    KeyTable,
    PlayedDiamond,
    Segments,
    denoising_loss,
    fresh,
    learn,
    optimiser,
    train_diamond,
)
from worldmodel.train.envs.car_racing import CarRacing

SMALL = {"cond_channels": 16, "depths": (1, 1), "channels": (8, 8), "attn_depths": (False, False)}
SPEC = DiamondSpec(3, height=8, width=8, **SMALL)  # type: ignore[arg-type]
PAST = SPEC.num_steps_conditioning


class Oracle(torch.nn.Module):
    """A network that knows the picture, and notes what it was asked."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target, self.asked = target, []

    def forward(self, noisy, c_noise, history, actions):
        self.asked.append((history * SPEC.sigma_data, actions))
        total = (4 * c_noise).exp()[:, None, None, None]
        c_in = 1 / (total**2 + SPEC.sigma_data**2).sqrt()
        c_skip, c_out = (SPEC.sigma_data * c_in) ** 2, total * SPEC.sigma_data * c_in
        return (self.target - c_skip * noisy / c_in) / c_out


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("cars"), CarRacing(size=32), "car_racing", 400).folder


@pytest.fixture(scope="module")
def run(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a moment."""
    out = tmp_path_factory.mktemp("runs") / "diamond"
    train_diamond(recording, out, minutes=0.07, batch=4, changes=SMALL)
    return out


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 5.0, 20.0])
def test_what_the_network_is_given_and_asked_for_has_unit_variance(sigma):
    level, column = preconditioning(SPEC, sigma), preconditioning(SPEC, torch.full((2, 1, 1, 1), sigma))
    torch.testing.assert_close(torch.stack(list(column))[:, 0, 0, 0, 0], torch.tensor(level))
    clean, noise = SPEC.sigma_data**2, sigma**2 + SPEC.sigma_offset_noise**2  # variances
    assert level.c_in**2 * (clean + noise) == pytest.approx(1)
    assert ((1 - level.c_skip) ** 2 * clean + level.c_skip**2 * noise) / level.c_out**2 == pytest.approx(1)


def test_a_network_that_knows_the_picture_has_no_loss_and_draws_it():
    target = to_levels(torch.rand(2, 3, 8, 8, generator=draw()) * 2 - 1)
    denoiser = fresh(SPEC).denoiser
    denoiser.inner_model = Oracle(target)
    history, actions = torch.zeros(2, PAST, 3, 8, 8), torch.zeros(2, PAST, dtype=torch.int64)
    loss, clean = denoising_loss(denoiser, history, actions, target, draw())
    assert loss < 1e-6
    torch.testing.assert_close(clean, target, atol=1e-4, rtol=0)
    made = denoiser.sample(history, actions, torch.randn(2, 3, 8, 8, generator=draw()))
    assert (made - target).abs().max() < 1.01 * 2 / 255, "rounded down to one of 256 levels"


def test_predictions_see_the_keys_that_led_to_them_and_take_true_pictures_places():
    pictures = to_levels(torch.rand(2, PAST + 2, 3, 8, 8, generator=draw()) * 2 - 1)
    actions = torch.arange(2 * (PAST + 2)).view(2, PAST + 2) % 3
    denoiser = fresh(SPEC).denoiser
    dream = torch.zeros(2, 3, 8, 8, requires_grad=True)
    oracle = denoiser.inner_model = Oracle(dream)
    learn(denoiser, pictures, actions, draw())
    (first, told), (second, told_then) = oracle.asked
    torch.testing.assert_close(first, pictures[:, :PAST])
    torch.testing.assert_close(second[:, :-1], pictures[:, 1:PAST])
    torch.testing.assert_close(second[:, -1], to_levels(dream), atol=0.01, rtol=0)
    assert torch.equal(told, actions[:, 1 : PAST + 1]) and torch.equal(told_then, actions[:, 2:])
    assert not second.requires_grad and dream.grad is not None and dream.grad.abs().sum() > 0


def test_keys_held_together_are_one_action_and_unknown_ones_the_nearest():
    held = np.array([[1, 0, 1]] * 3 + [[1, 0, 0]] * 2 + [[0, 1, 0]], bool)
    keys = KeyTable.of(["left", "right", "gas"], held)
    assert keys.combinations == ((False,) * 3, (True, False, True), (True, False, False), (False, True, False))
    assert keys.numbers(held).tolist() == [1, 1, 1, 2, 2, 3]
    unknown = np.array([[[0, 0, 0]], [[0, 0, 1]], [[1, 1, 1]], [[0, 1, 1]]], bool)
    assert keys.numbers(unknown).tolist() == [[0], [0], [1], [3]]


def test_segments_lie_within_an_episode_and_a_scene():
    episode, scene = np.repeat([0, 1], [6, 4]), np.repeat([0, 1, 2], [4, 2, 4])
    held = (np.arange(10)[:, None] >> np.arange(4) & 1).astype(np.uint8)  # every frame's keys are its number
    pictures = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 2, 2, 3)).copy()
    recorded = Arrays(pictures, held, episode, scene, np.zeros((10, 0), np.float32), [])
    keys = KeyTable(tuple("abcd"), tuple(tuple(bool(n >> bit & 1) for bit in range(4)) for n in range(10)))
    segments = Segments.of(recorded, keys, 3, torch.device("cpu"))
    assert segments.starts.tolist() == [0, 1, 6, 7]
    pictures, actions = segments.draw(50, draw())
    assert pictures.shape == (50, 3, 3, 2, 2) and set(actions[:, 0].tolist()) == {0, 1, 6, 7}
    torch.testing.assert_close((pictures[:, :, 0, 0, 0] + 1) * 127.5, actions.float())
    with pytest.raises(DatasetError, match="no 5 frames in a row"):
        Segments.of(recorded, keys, 5, torch.device("cpu"))


def test_learning_lowers_the_loss(recording):
    recorded = Dataset(recording).load()
    keys = KeyTable.of(["left", "right", "gas", "brake"], recorded.actions.astype(bool))
    segments = Segments.of(recorded, keys, PAST + 2, torch.device("cpu"))
    torch.manual_seed(0)
    denoiser = fresh(DiamondSpec(len(keys.combinations), height=32, width=32, **SMALL)).denoiser
    pictures, actions = segments.draw(32, draw())

    def loss() -> float:
        with torch.no_grad():
            given = denoiser, pictures[:, :PAST], actions[:, 1 : PAST + 1], pictures[:, PAST]
            return denoising_loss(*given, draw(1))[0].item()

    adam, generator, before = optimiser(denoiser), draw(2), loss()
    for group in adam.param_groups:
        group["lr"] *= 30  # so few weights may hurry
    for _ in range(40):
        adam.zero_grad()
        learn(denoiser, *segments.draw(4, generator), generator)
        adam.step()
    assert loss() < 0.5 * before


def test_stopped_training_goes_on_and_a_folder_is_of_one_recording(run, recording, tmp_path):
    assert list(run.glob("denoiser-*.png")), "a strip to look at"
    before = json.loads((run / "denoiser.json").read_text())
    more = before[-1]["seconds"] / 60 + 0.01
    figures = train_diamond(recording, run, minutes=more, batch=4, resume=True, changes=SMALL)
    after = json.loads((run / "denoiser.json").read_text())
    assert after[: len(before)] == before and figures["step"] > before[-1]["step"]
    with pytest.raises(DatasetError, match="choose another folder"):
        other = recorded(tmp_path, CarRacing(size=24), "car_racing", 40).folder
        train_diamond(other, run, minutes=more, resume=True, changes=SMALL)
    with pytest.raises(CheckpointError, match="train DIAMOND there first"):
        PlayedDiamond.load(tmp_path)


def test_equal_seeds_play_equal_games_that_follow_from_what_was_given(run):
    world = PlayedDiamond.load(run, context=9)
    assert world.context == 9 and not world.prompted
    rng = np.random.default_rng(0)
    frames, held = rng.integers(0, 256, (2, 9, 32, 32, 3), np.uint8), rng.random((2, 9, 4)) < 0.5

    def play(seed: int, given: np.ndarray, keys: np.ndarray) -> np.ndarray:
        game = world.begin(given, keys, ["", ""], seed)
        game.say(["another", "prompt"])
        return np.stack([game.tick(np.array([[1, 0, 0, 0], [0, 0, 1, 0]], bool)) for _ in range(3)])

    first = play(1, frames, held)
    assert first.shape == (3, 2, 32, 32, 3) and np.array_equal(first, play(1, frames, held))
    assert not np.array_equal(first, play(2, frames, held))
    older = frames.copy()
    older[:, : 9 - PAST] = 0
    assert np.array_equal(first, play(1, older, held)), "only the last pictures are looked at"
    led = world.begin(frames, held, ["", ""], 1).state["actions"]
    assert led.tolist() == world.keys.numbers(held[:, 1 - PAST :]).tolist()

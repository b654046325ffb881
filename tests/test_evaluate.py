"""What an evaluation promises: the real game gets full marks, a frozen picture none, and it says which is which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gymnasium")

from frozen_world import Frozen

from worldmodel.train import evaluate_car
from worldmodel.train.dataset import Dataset
from worldmodel.train.drift import collapsed, drift
from worldmodel.train.envs import captions
from worldmodel.train.evaluate import Settings, evaluate, horizontal_shift, record_fresh, summary
from worldmodel.train.judge.judge import Judge
from worldmodel.train.playable import Frames, Held, RealGame

SIZE = 64


class Painter(Frozen):
    """A world that, four ticks after it was told, shows the colours named, and nothing else."""

    def say(self, prompts: Sequence[str]) -> None:
        self.wait = 4
        self.painted = np.stack([self.paint(prompt.lower()) for prompt in prompts])

    def tick(self, held: Held) -> Frames:
        self.wait -= 1
        return self.frames if self.wait > 0 else self.painted

    def paint(self, prompt: str) -> np.ndarray:
        names = sorted((name for name in captions.all_names() if name in prompt), key=len, reverse=True)
        first = names[0]
        second = next(name for name in names[1:] if name in prompt.replace(first, ""))
        picture = np.empty((SIZE, SIZE, 3), np.uint8)
        picture[:, :32], picture[:, 32:] = captions.all_names()[first], captions.all_names()[second]
        return picture


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the generated game of every trial the real one, begun a second time from the same seeds."""
    begun = []
    for name in ("rolling_start", "driven_start"):

        def start(*args: object, make: object = getattr(evaluate_car, name)) -> evaluate_car.Start:
            begun.append(make(*args).car)
            return make(*args)

        monkeypatch.setattr(evaluate_car, name, start)

    def games(world: object, starts: Sequence[evaluate_car.Start], seed: int) -> tuple[RealGame, RealGame]:
        return RealGame([start.car for start in starts]), RealGame(begun[-len(starts) :])

    monkeypatch.setattr(evaluate_car, "games", games)


@pytest.mark.usefixtures("twins")
def test_the_real_game_steers_coasts_and_drives_like_itself() -> None:
    turns, rows = evaluate_car.steering(Frozen(), SIZE, 0, 2)
    for key in ("left", "right"):
        assert turns[key]["sign"] == turns[key]["sign_real"] > 0.95
        assert turns[key]["speed"] == pytest.approx(1) and turns[key]["response_ticks"] == 0
    assert len(rows) == 8
    coasting = evaluate_car.coasting(Frozen(), SIZE, 0, 2)
    assert coasting.pop("intervals") == {"coasts": (1, 1), "stands": (1, 1)} and set(coasting.values()) == {1.0}
    finding, rows = evaluate_car.finding(Frozen(), SIZE, 0, 2)
    assert finding["leaves_road"] == finding["leaves_road_real"] == 1 and len(rows) == 4
    assert finding["finds_road"] == finding["finds_road_real"] > 0
    straying, rows = evaluate_car.unsteered(Frozen(), SIZE, 0, 2)
    assert straying["strays"] == straying["strays_real"] > 0.5
    assert all(np.array_equal(*pair) for pair in zip(rows[::2], rows[1::2], strict=True)) and len(rows) == 4
    judge = Judge.of("car_racing")
    figures, real, made = evaluate_car.closed_loop(Frozen(), SIZE, 0, 2, 120, lambda text: None, judge)
    assert figures["on_road"] == figures["on_road_real"] > 0.95 and figures["stall"] == 0
    assert figures["speed_ratio"] == pytest.approx(1) and figures["bends_ratio"] == pytest.approx(1)
    figures = drift(real, made, 120)
    assert figures["collapsed"] == figures["collapsed_real"]
    for name in ("distance", "frechet", "keys"):
        assert all(stretch[name] == stretch[f"{name}_real"] for stretch in figures["drift"]), name
    assert all(stretch["flow_ratio"] == 1 for stretch in figures["drift"])
    assert figures["frechet_kept"] == figures["frechet_kept_real"]
    assert real.seen is not None
    noisy = (
        real.seen
        + np.random.default_rng(0).normal(0, 3, real.seen.shape) * (np.arange(len(real.seen)) >= 12)[:, None, None]
    )
    worse = drift(real, replace(made, seen=noisy), 120)
    assert worse["frechet_end"] > 1.5 * figures["frechet_end"], "what the eye sees drift is drift"
    grey = replace(made, sharpness=made.sharpness / 4, contrast=made.contrast / 4)
    assert collapsed(grey, real, 6) == 2, "grey from the first tick is collapsed, too"


def test_a_frozen_picture_fails_every_trial() -> None:
    turns, _ = evaluate_car.steering(Frozen(), SIZE, 0, 2)
    for key in ("left", "right"):
        assert turns[key]["sign"] == 0 and turns[key]["sign_real"] > 0.95
        assert abs(turns[key]["speed"]) < 0.01 and turns[key]["response_ticks"] > 20
    coasting = evaluate_car.coasting(Frozen(), SIZE, 0, 2)
    assert coasting["coasts"] == 0 and coasting["coasts_real"] == coasting["stands_real"] == 1
    finding, _ = evaluate_car.finding(Frozen(), SIZE, 0, 2)
    assert finding["leaves_road"] == 0 and finding["finds_road"] is None and finding["leaves_road_real"] == 1
    straying, _ = evaluate_car.unsteered(Frozen(), SIZE, 0, 2)
    assert straying["strays"] == 0 and straying["strays_real"] > 0.5
    figures, _, _ = evaluate_car.closed_loop(Frozen(), SIZE, 0, 2, 100, lambda text: None)
    assert figures["stall"] > 0.7 and figures["stall_real"] < 0.02
    prompts, _ = evaluate_car.prompts(Frozen(), SIZE, 0, 4)
    assert prompts["recognised"] == 0 and prompts["ticks"] is None


def test_colours_that_were_asked_for_are_recognised_when_they_come() -> None:
    figures, told = evaluate_car.prompts(Painter(), SIZE, 0, 8)
    assert figures["recognised"] == 1 and figures["ticks"] == 4
    assert all(one.final < 3 for one in told)


def test_an_evaluation_has_every_field_and_a_page(tmp_path: Path) -> None:
    found = evaluate(Frozen(), Settings("car_racing", SIZE, 0, ticks=100, rollouts=2), report=tmp_path / "report")
    figures = found["scenes"]["car_racing"]
    named = (
        "on_road on_road_real stall turn_speed psnr_next psnr_copy psnr_codec follow follow_ceiling turn_sign "
        "turn_sign_real response_ticks motion_ratio drift drift_ratio collapsed rollouts ssim_next perceptual_next "
        "flow_ratio keys keys_real keys_share keys_over_chance shake frechet_end frechet_kept memory diversity"
    )
    assert not set(named.split()) - set(figures)
    for name in ("psnr", "ssim", "perceptual"):
        assert figures[f"{name}_next"] == figures[f"{name}_copy"] != figures[f"{name}_codec"]
        low, high = figures["intervals"][f"{name}_next"]
        assert low <= figures[f"{name}_next"] <= high
    assert figures["motion_ratio"] == 0 and figures["flow_ratio"] < 0.01 and figures["keys_over_chance"] < 0.4
    assert figures["memory"] == figures["diversity"] == 0
    assert figures["follow"] == 0 and figures["follow_ceiling"] == pytest.approx(1)
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == json.loads(json.dumps(found))
    page = (tmp_path / "report" / "index.html").read_text()
    shown = "followed steering driven prompts circle diversity car_racing-1 car_racing-2 car_racing-3 car_racing-4"
    for picture in (f"{name}.png" for name in shown.split()):
        assert picture in page and (tmp_path / "report" / picture).stat().st_size > 1000
    assert "on_road" in summary(found)


@pytest.mark.parametrize("pixels", [-7, 0, 5])
def test_a_first_person_view_that_turns_is_seen_to_turn(pixels: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (15, 40, 3), np.uint8)
    wall = np.repeat(np.repeat(noise, 8, 0), 8, 1)
    before, after = wall[:, 80:240], wall[:, 80 - pixels : 240 - pixels]
    assert horizontal_shift(before, after) == pytest.approx(pixels, abs=0.7)


def test_a_world_of_any_environment_is_tried_on_episodes_that_it_was_not_trained_on(tmp_path: Path) -> None:
    """The adapter is one for many: the world says which environment it plays."""
    settings = Settings("gymnasium", 32, 3, ticks=50, rollouts=1, env_id="CartPole-v1")
    record_fresh(settings, tmp_path)
    info = Dataset(tmp_path).info
    assert info.env == "CartPole-v1" and (info.height, info.width) == (32, 32)
    assert info.seed != settings.seed

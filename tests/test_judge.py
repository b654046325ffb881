"""The judge is judged: real frames get full marks, shuffled keys chance, a frozen picture no motion, blur bad marks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gymnasium")
pytest.importorskip("torchmetrics")

import torch
from frozen_world import Frozen

from worldmodel.errors import CheckpointError, DatasetError
from worldmodel.train import candidates, evaluate_places, evaluate_scenes
from worldmodel.train.clips import Clip
from worldmodel.train.dataset import Dataset
from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.evaluate import keys_recovered
from worldmodel.train.intervals import interval, mean_interval, ratio_interval
from worldmodel.train.judge.frechet import Crowd, frechet
from worldmodel.train.judge.hands import AFTER, BEFORE, Hands, balanced_accuracy, flow_strength, movements
from worldmodel.train.judge.judge import WEIGHTS, Judge
from worldmodel.train.judge.scenes import learn_scenes
from worldmodel.train.judge.similarity import ssim
from worldmodel.train.judge.train import train_judge
from worldmodel.train.playable import RealGame
from worldmodel.train.record import Recording, prepare, record
from worldmodel.train.report import Curve, write_report

SIZE, PLAYERS, TICKS = 96, 5, 90


@pytest.fixture(scope="module")
def judge() -> Judge:
    found = Judge.of("car_racing")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def drives() -> tuple[np.ndarray, np.ndarray]:
    """Held-out drives: frames uint8 [players, ticks, height, width, 3] and the keys that led to each."""
    frames, actions = [], []
    for player in range(PLAYERS):
        car = CarRacing(size=SIZE, split="test", recolour=False)
        frames.append([car.reset(player)])
        actions.append([np.zeros(4, bool)])
        drive = car.policy(np.random.default_rng(400 + player))
        for _ in range(TICKS - 1):
            actions[-1].append(np.array(drive(), bool))
            frames[-1].append(car.step(actions[-1][-1])[0])
    return np.array(frames), np.array(actions)


def blurred(frames: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    flat = frames.reshape(-1, *frames.shape[-3:])
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in flat]).reshape(frames.shape)


def test_keys_are_read_from_real_frames_and_guessed_where_they_lead_to_nothing(
    judge: Judge, drives: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, actions = drives
    found = keys_recovered(judge, actions, frames, frames, now=8)
    assert found["keys_share"] == found["keys_over_chance"] == found["shake"] == 1 and found["keys_real"] > 0.85
    assert min(found["keys"][name]["real"] for name in ("left", "right")) > 0.9
    other = np.concatenate([frames[:, :8], np.roll(frames, 1, 0)[:, 8:]], 1)  # moves as if other keys were held
    assert abs(keys_recovered(judge, actions, frames, other, now=8)["keys_over_chance"]) < 0.35
    frozen = np.concatenate([frames[:, :8], np.repeat(frames[:, 7:8], TICKS - 8, 1)], 1)
    assert keys_recovered(judge, actions, frames, frozen, now=8)["keys_over_chance"] < 0.25


def test_a_camera_that_trembles_is_told_from_one_that_moves(
    judge: Judge, drives: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, actions = drives
    late = np.concatenate([frames[:, :8], frames[:, 7:-1]], 1)  # as steady but for one stop
    trembling = np.stack([np.roll(frame, tick % 2, 2) for tick, frame in enumerate(frames.swapaxes(0, 1))], 1)
    late, trembling = (keys_recovered(judge, actions, frames, made, now=8)["shake"] for made in (late, trembling))
    assert 0.8 < late < 1.5 and trembling > 3


def test_shuffled_keys_score_as_chance(judge: Judge, drives: tuple[np.ndarray, np.ndarray]) -> None:
    frames, actions = drives
    said = judge.held(np.stack([movements("car_racing", player) for player in frames], 1))
    held = actions.swapaxes(0, 1)[1 + BEFORE : TICKS - AFTER].reshape(-1, 4)
    order = np.random.default_rng(0).permutation(len(held))
    assert np.nanmean(balanced_accuracy(held, said.reshape(-1, 4))) > 0.85
    assert balanced_accuracy(held[order], said.reshape(-1, 4)) == pytest.approx(0.5, abs=0.1)


def test_the_eye_sees_blur_and_not_where_a_frame_comes_from(
    judge: Judge, drives: tuple[np.ndarray, np.ndarray]
) -> None:
    frames, _ = drives
    some = frames[:, ::20].reshape(-1, SIZE, SIZE, 3)
    near = [judge.distance(some, blurred(some, sigma)).mean() for sigma in (0.5, 1.0, 2.0)]
    assert judge.distance(some, some).max() == 0 < near[0] < near[1] < near[2] < 1
    assert 0.5 < judge.distance(some, np.roll(some, 5, 0)).mean() < 1.5, "unrelated frames are about 1 apart"
    near, far = (judge.distance(some, shown).mean() for shown in (blurred(some, 2.0), np.roll(some, 1, 1)))
    assert near > 0.5 * far, "smeared edges are about as bad as a picture a pixel aside"
    seen, soft = (
        np.stack([judge.describe(part) for part in shown.swapaxes(0, 1)[::2]]) for shown in (frames, blurred(frames))
    )
    everyone, usual = np.arange(PLAYERS), seen.mean(0)
    some_real, others, bad = (Crowd.of(part - usual) for part in (seen[::2], seen[1::2], soft[1::2]))
    assert frechet(some_real, some_real, everyone) < 1e-3
    assert frechet(some_real, bad, everyone) > 1.5 * frechet(some_real, others, everyone)


COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40), "sand": (210, 190, 120)}


class Obedient:
    """A world of plain grounds that shows what was told `late` ticks later, or (late below 0) never does."""

    actions, context = ("go",), 4

    def __init__(self, late: int) -> None:
        self.late = late

    def begin(self, frames: np.ndarray, actions: np.ndarray, prompts: Sequence[str], seed: int) -> Obedient:
        self.shown, self.told, self.wait = list(prompts), list(prompts), 0
        return self

    def say(self, prompts: Sequence[str]) -> None:
        self.told, self.wait = list(prompts), self.late

    def tick(self, held: np.ndarray) -> np.ndarray:
        if self.late >= 0 and self.wait == 0:
            self.shown = self.told
        self.wait -= 1
        return np.concatenate([ground(name, 1) for name in self.shown])

    def through_codec(self, frames: np.ndarray) -> np.ndarray:
        return frames


def ground(name: str, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return np.clip(np.array(COLOURS[name]) + rng.normal(0, 12, (count, 32, 32, 3)), 0, 255).astype(np.uint8)


def test_a_scene_that_was_told_is_recognised_when_it_comes_and_only_then(judge: Judge, tmp_path: Path) -> None:
    names = tuple(COLOURS)
    seen = [torch.from_numpy(judge.describe(ground(name, 20))).float() for name in names]
    layer = learn_scenes(torch.cat(seen), torch.arange(3).repeat_interleave(20), 3)
    replace(judge, actions=("go",), scenes=names, scene=layer, hands=Hands(3, 1)).save(tmp_path / "plain.safetensors")
    plain = Judge.load(tmp_path / "plain.safetensors")
    assert plain.scenes == names
    clips = {name: [Clip(ground(name, 44), np.zeros((44, 1), bool), name, 0)] * 2 for name in names}
    obeyed, rows = evaluate_scenes.switches(Obedient(5), clips, 0, plain)
    assert obeyed["recognised"] == obeyed["recognised_real"] == obeyed["kept"] == 1
    assert obeyed["ticks"] == 6 and obeyed["prompts"] == 12 and len(rows) == 6
    deaf, _ = evaluate_scenes.switches(Obedient(-1), clips, 0, plain)
    assert deaf["recognised"] == 0 and deaf["kept"] == 1 and deaf["ticks"] is None


def test_a_distance_of_crowds_is_that_of_their_means_and_spreads() -> None:
    crowd = np.random.default_rng(0).standard_normal((500, 2, 6))
    everyone = np.arange(2)
    assert frechet(Crowd.of(crowd), Crowd.of(crowd + 1), everyone) == pytest.approx(1, abs=1e-6)
    assert frechet(Crowd.of(crowd), Crowd.of(3 * crowd), everyone) == pytest.approx(2, abs=0.15)
    mixed = Crowd.of(np.stack([crowd[:, 0], crowd[:, 0] + 1], 1))
    assert frechet(Crowd.of(crowd[:, :1]), mixed, np.array([0])) == pytest.approx(0, abs=1e-6), "one player alone"


def test_similarity_is_one_for_equal_frames_only(drives: tuple[np.ndarray, np.ndarray]) -> None:
    some = drives[0][:, 5]
    assert ssim(some, some) == pytest.approx(1)
    many = drives[0].reshape(-1, SIZE, SIZE, 3)[:40]  # more than are compared at a time
    assert ssim(many, blurred(many))[-3:] == pytest.approx(ssim(many[-3:], blurred(many[-3:])))
    assert ssim(some, blurred(some)).max() < 0.999 and ssim(some, blurred(some)).mean() < 0.98


def test_optical_flow_is_none_in_a_frozen_picture_and_as_long_as_a_shift() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    wall = cv2.resize(noise, (112, 112), interpolation=cv2.INTER_CUBIC)
    assert flow_strength(wall, wall) < 0.01
    assert flow_strength(wall[:, 8:104], wall[:, 5:101]) == pytest.approx(3, rel=0.15)


def test_an_environment_without_a_probe_of_its_own_is_seen_by_its_flow() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), np.uint8)
    assert movements("gymnasium", frames).shape == (3, 6 * 6 * 3)


class Elsewhere(Frozen):
    """A world in which every player goes on at another place."""

    def begin(self, frames: np.ndarray, actions: np.ndarray, prompts: Sequence[str], seed: int) -> RealGame:
        return RealGame([evaluate_places.driven_start(self, SIZE, 100 + i).car for i in range(len(frames))])


def test_the_real_car_comes_back_to_its_place_and_a_frozen_one_never() -> None:
    found, rows = evaluate_places.memory(Frozen(), SIZE, 0, 2)
    assert found["memory_real"] > 0.8 > found["memory_chance"] and found["memory"] == 0
    assert len(rows) == 2


def test_worlds_that_dream_different_places_are_diverse_and_a_frozen_one_is_not(judge: Judge) -> None:
    quiet = lambda text: None  # noqa: E731
    assert evaluate_places.diversity(Frozen(), SIZE, 0, 3, judge, quiet)[0]["diversity"] == 0
    assert evaluate_places.diversity(Elsewhere(), SIZE, 0, 3, judge, quiet)[0]["diversity"] > 0.6


def test_intervals_cover_the_mean_and_are_narrow_where_rollouts_agree() -> None:
    values = np.random.default_rng(0).normal(5, 1, (10, 40))
    low, high = mean_interval(values) or (0, 0)
    assert low < values.mean() < high and high - low < 0.4
    assert mean_interval(np.full((3, 5), 2.0)) == (2, 2) and mean_interval(np.ones((3, 1))) is None
    assert ratio_interval(2 * values, values) == pytest.approx((2, 2))
    assert interval(lambda chosen: float(len(set(chosen))), 4) == interval(lambda chosen: float(len(set(chosen))), 4)


def test_a_judge_is_trained_stopped_and_gone_on_with(tmp_path: Path) -> None:
    data = tmp_path / "data"
    recording = Recording("car_racing", {"size": 32}, frames=600, seed=0, split="train", shard_frames=300)
    record(recording, data, prepare(recording, data), workers=1)
    whole = train_judge(data, tmp_path / "whole", steps=6, frames=400)
    assert whole["step"] == 6 and set(CarRacing.actions) < set(whole)
    found = Judge.load(tmp_path / "whole" / "car_racing.safetensors")
    assert found.actions == CarRacing.actions and (found.height, found.width) == (32, 32)
    frames = Dataset(data).read(0, "frames", 0, 20)
    assert np.isfinite(found.describe(frames)).all()
    assert found.held(movements("car_racing", frames)[:, None]).shape == (19 - BEFORE - AFTER, 1, 4)
    again = train_judge(data, tmp_path / "whole", steps=8, frames=400, resume=True)
    assert again["step"] == 8


def test_what_is_no_judge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "judge.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a judge"):
        Judge.load(tmp_path / "judge.safetensors")
    assert Judge.of("nowhere") is None
    assert (WEIGHTS / "car_racing.safetensors").stat().st_size < 1_000_000


def test_reports_show_curves(tmp_path: Path) -> None:
    curve = Curve(
        "drift.png", "a <drift>", "far", [250, 750], {"real": [1, None], "made": [1, 2]}, {"made": [(0, 2), (1, 3)]}
    )
    write_report(tmp_path, {"scenes": {"s": {"psnr": 1.0, "intervals": {"psnr": (0.5, 1.5)}}}}, [], [curve])
    page = (tmp_path / "index.html").read_text()
    assert "drift.png" in page and "a &lt;drift&gt;" in page and "0.500 to 1.500" in page
    assert (tmp_path / "drift.png").stat().st_size > 1000


def test_all_candidates_stand_in_one_table(tmp_path: Path) -> None:
    for name, share in (("first", 0.5), ("second", 0.987)):
        figures = {"keys_share": share, "stall": 0.1, "stall_real": 0.0, "intervals": {"keys_share": [0.4, 0.6]}}
        report = {"scenes": {"s": figures}, "settings": {"rollouts": 16, "ticks": 2000}, "prompt": {"recognised": 1.0}}
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    lines = candidates.table(candidates.read(tmp_path)).splitlines()
    assert lines[0] == "| figure | first | second | real game |"
    assert "| `keys_share` | 0.50 <sub>0.40–0.60</sub> | 0.99 <sub>0.40–0.60</sub> | 1 |" in lines
    assert "| `stall` | 0.10 | 0.10 | 0.00 |" in lines and "| `prompt.recognised` | 1.00 | 1.00 |  |" in lines
    with pytest.raises(DatasetError, match="no reports"):
        candidates.read(tmp_path / "none")

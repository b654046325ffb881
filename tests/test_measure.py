"""What the probes promise: pixels alone tell how the car moved, where it is and what colours it drives through."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gymnasium")

from worldmodel.train import measure
from worldmodel.train.envs.captions import delta_e
from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.measure import Motion, motion
from worldmodel.train.pixel_driver import PixelDriver, aim_along


class Drive:
    """Frames of the real game, with the truth about each."""

    def __init__(self) -> None:
        self.frames, self.colours, self.turned, self.advanced, self.on_road = [], [], [], [], []
        car = CarRacing(recolour=False)
        for seed in range(6):
            before = car.reset(50 + seed)
            drive, pose = car.policy(np.random.default_rng(seed)), car.pose()
            for tick in range(120):
                after, _ = car.step(drive())
                last, pose = pose, car.pose()
                if tick % 8 == 0:
                    moved = np.subtract(pose[:2], last[:2]) @ (-np.sin(last[2]), np.cos(last[2]))
                    self.frames.append((before, after))
                    self.turned.append(pose[2] - last[2])
                    self.advanced.append(moved / measure.UNITS_PER_PIXEL)
                    self.on_road.append(car.read_facts()[0])
                    self.colours.append((tuple(car.scene()["road"]), tuple(car.scene()["grass"])))
                before = after
        self.moves: list[Motion] = [motion(*pair) for pair in self.frames]


@pytest.fixture(scope="module")
def drive() -> Drive:
    return Drive()


def test_a_turn_is_seen_with_its_sign_and_size(drive: Drive) -> None:
    seen, true = np.array([move.rotation for move in drive.moves]), np.array(drive.turned)
    turning = np.abs(true) > 0.015
    assert turning.sum() > 20 and (true > 0.015).any() and (true < -0.015).any()
    assert (np.sign(seen) == np.sign(true))[turning].mean() > 0.97
    assert np.abs(seen - true).max() < 0.01


def test_speed_is_seen(drive: Drive) -> None:
    seen = np.array([move.forward for move in drive.moves])
    assert np.median(np.abs(seen - drive.advanced)) < 0.15 and np.max(drive.advanced) > 2


def test_a_short_search_about_the_last_motion_finds_the_same(drive: Drive) -> None:
    rng = np.random.default_rng(0)
    for pair, full in zip(drive.frames, drive.moves, strict=True):
        near = Motion(full.rotation + rng.uniform(-0.03, 0.03), full.forward + rng.uniform(-0.5, 0.5), 0.0, 0.0)
        short = motion(*pair, near)
        assert abs(short.rotation - full.rotation) < 0.004 and abs(short.forward - full.forward) < 0.3


def test_standing_still_is_told_from_driving(drive: Drive) -> None:
    stalled = np.array([move.stalled for move in drive.moves])
    assert not stalled[np.array(drive.advanced) > 0.5].any()
    frame = drive.frames[0][0]
    noise = np.random.default_rng(0).normal(0, 2, frame.shape)
    assert motion(frame, np.clip(frame + noise, 0, 255).astype(np.uint8)).stalled


def test_two_unlike_pictures_explain_nothing(drive: Drive) -> None:
    black, white = np.zeros((128, 128, 3), np.uint8), np.full((128, 128, 3), 255, np.uint8)
    assert motion(black, white).explained < 0.1


def test_the_road_under_the_car_is_seen(drive: Drive) -> None:
    masks = [
        measure.road_mask(after, *colours) for (_, after), colours in zip(drive.frames, drive.colours, strict=True)
    ]
    seen = [measure.on_road(mask) for mask in masks]
    assert ((np.array(seen) >= 0.5) == (np.array(drive.on_road) >= 0.5)).mean() > 0.95


def test_the_scenes_colours_are_found_and_others_are_not(drive: Drive) -> None:
    for (_, after), (road, grass) in list(zip(drive.frames, drive.colours, strict=True))[::15]:
        if measure.road_mask(after, road, grass).mean() < 0.05:
            continue
        assert max(measure.colour_errors(after, road, grass)) < 3
        other = (255 - road[0], 255 - road[1], 255 - road[2])
        seen = [other_colour for other_colour in (road, grass) if delta_e(other, other_colour) < 25]
        assert seen or measure.colour_errors(after, other, grass)[0] > 10


def test_a_frame_of_one_colour_has_that_colour() -> None:
    assert measure.colour_errors(np.full((64, 64, 3), 90, np.uint8), (90, 90, 90), (255, 0, 0))[0] < 1


def test_blur_lowers_sharpness_and_grows_the_feature_distance(drive: Drive) -> None:
    import cv2

    real = np.stack([pair[0] for pair in drive.frames])
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in real])
    features = measure.features(real)
    assert measure.sharpness(blurred[0]) < 0.6 * measure.sharpness(real[0])
    same = measure.feature_distance(features[::2], features[1::2])
    assert measure.feature_distance(features[::2], measure.features(blurred[1::2])) > 1.5 * same


@pytest.mark.parametrize("seed, size", [(3, 128), (4, 96)])
def test_the_pixel_driver_keeps_the_real_car_on_the_road(seed: int, size: int) -> None:
    car = CarRacing(size=size, recolour=False, split="test")
    frame = car.reset(seed)
    driver = PixelDriver(tuple(car.scene()["road"]), tuple(car.scene()["grass"]))
    facts = []
    for _ in range(300):
        frame, _ = car.step(driver(frame))
        facts.append(car.read_facts())
    known = dict(zip(car.facts, np.array(facts).T, strict=True))
    assert (known["on_road"] >= 0.5).mean() > 0.95
    assert known["speed"][50:].min() > 5 and np.abs(known["curvature"]).max() > 0.03, "it should have met a bend"


def test_the_driver_aims_along_the_road() -> None:
    ahead = np.zeros((64, 64), bool)
    ahead[:, 24:41] = True
    right, forward = aim_along(ahead) or (9, 0)
    assert abs(right) < 1 and 12 < forward < 17
    bend = np.zeros((64, 64), bool)
    bend[37:, 24:41] = True
    bend[37:53, 24:] = True
    assert (aim_along(bend) or (0, 0))[0] > 5
    assert aim_along(np.zeros((64, 64), bool)) is None

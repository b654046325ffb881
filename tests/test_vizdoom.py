"""What a recording of the Doom rooms may rely on. Needs the extra `train`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worldmodel.errors import SpecError
from worldmodel.train.envs.vizdoom import SCENES, VizDoom, shrink
from worldmodel.train.envs.vizdoom_captions import HELD_OUT_CAPTIONS, SCENE_CAPTIONS

pytest.importorskip("vizdoom")


@pytest.fixture(scope="module")
def rooms() -> Iterator[dict[str, VizDoom]]:
    """One environment for each scene, shared by the tests: starting an engine takes most of their time."""
    environments = {name: VizDoom([name]) for name in SCENES}
    yield environments
    for environment in environments.values():
        environment.close()


def press(*names: str) -> np.ndarray:
    return np.array([name in names for name in VizDoom.actions])


def fact(environment: VizDoom, name: str) -> float:
    return float(environment.read_facts()[environment.facts.index(name)])


def play(environment: VizDoom, seed: int, ticks: int) -> np.ndarray:
    """The frames of one driven episode: uint8 [ticks + 1, height, width, 3]."""
    frames = [environment.reset(seed)]
    act = environment.policy(np.random.default_rng(seed))
    for _ in range(ticks):
        frames.append(environment.step(act())[0])
    return np.array(frames)


@pytest.mark.parametrize("scene", SCENES)
def test_a_seed_makes_the_same_frames_whatever_was_played_before(rooms: dict[str, VizDoom], scene: str) -> None:
    fresh = VizDoom([scene])
    first = play(fresh, seed=5, ticks=40)
    fresh.close()
    rooms[scene].reset(6)
    for _ in range(23):
        other, _ = rooms[scene].step(press("forward"))  # the weapon swings widest while walking
    assert np.array_equal(first, play(rooms[scene], seed=5, ticks=40))
    assert not np.array_equal(first[23], other)


def test_the_seed_chooses_the_scene() -> None:
    environment = VizDoom()
    seen = []
    for seed in range(12):
        environment.reset(seed)
        seen.append(environment.scene()["scene"])
    environment.reset(0)
    assert set(seen) == set(SCENES)
    assert environment.scene()["scene"] == seen[0]
    environment.close()


@pytest.mark.parametrize("scene", SCENES)
def test_turning_and_walking_work_in_every_scene(rooms: dict[str, VizDoom], scene: str) -> None:
    room = rooms[scene]
    for button, sign in (("turn_left", 1), ("turn_right", -1)):
        still = room.reset(1)
        before = fact(room, "angle")
        turned, _ = room.step(press(button))
        swing = (fact(room, "angle") - before + 180) % 360 - 180
        assert sign * swing > 1
        assert np.abs(turned.astype(int) - still).mean() > 1  # seen in the very tick that it is pressed
    room.reset(1)
    before_x, before_y = fact(room, "x"), fact(room, "y")
    for _ in range(5):
        room.step(press("forward"))
    assert np.hypot(fact(room, "x") - before_x, fact(room, "y") - before_y) > 20


def test_a_shot_target_falls_and_another_comes(rooms: dict[str, VizDoom]) -> None:
    room = rooms["basic"]
    room.reset(3)
    alive = []  # how many targets the map holds, tick by tick
    for _ in range(400):
        view = room.view()
        alive.append(len(view.monsters))
        if not view.monsters:
            room.step(press())
            continue
        bearing = view.bearing(view.monsters[0])
        button = "attack" if abs(bearing) < 3 else "turn_left" if bearing > 0 else "turn_right"
        room.step(press(button))
    killed = np.flatnonzero(np.diff(alive) == -1)
    came = np.flatnonzero(np.diff(alive) == 1)
    assert len(killed) >= 2
    assert len(came) >= 1
    assert fact(room, "kills") == len(killed)


def test_an_episode_ends_when_the_player_is_down_and_still_shows_a_frame() -> None:
    environment = VizDoom(["health_gathering"])  # its floor burns
    environment.reset(0)
    for _ in range(1000):
        frame, done = environment.step(press())
        if done:
            break
    assert done
    assert fact(environment, "health") == 1
    assert frame.shape == (120, 160, 3) and frame.dtype == np.uint8 and frame.std() > 5
    environment.close()


def test_the_test_split_has_other_episodes_and_other_words(rooms: dict[str, VizDoom]) -> None:
    held_out = VizDoom(["basic"], split="test")
    assert not np.array_equal(rooms["basic"].reset(5), held_out.reset(5))
    assert not set(rooms["basic"].scene()["captions"]) & set(held_out.scene()["captions"])
    held_out.close()


def test_nothing_is_left_where_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = VizDoom(["basic"])
    environment.reset(0)
    environment.step(press("attack"))
    assert Path.cwd() == tmp_path
    environment.close()
    assert not list(tmp_path.iterdir())


def test_shrinking_is_the_mean_of_each_square() -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    plain = drawn.reshape(120, 4, 160, 4, 3).mean((1, 3))
    assert np.abs(shrink(drawn) - plain).max() <= 1


def test_an_unknown_scene_names_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"e1m1.*defend_the_center, health_gathering, basic"):
        VizDoom(["e1m1"])


@pytest.mark.parametrize("scene", SCENES)
def test_captions_are_many_and_the_held_out_ones_are_new(scene: str) -> None:
    def words(captions: tuple[str, ...]) -> set[frozenset[str]]:
        return {frozenset(caption.lower().replace(",", "").split()) for caption in captions}

    seen = {frozenset(c.split()) for other in SCENE_CAPTIONS.values() for c in other}
    assert len(words(SCENE_CAPTIONS[scene])) >= 25  # not even the same words in another order
    assert len(words(HELD_OUT_CAPTIONS[scene])) >= 8
    assert not words(HELD_OUT_CAPTIONS[scene]) & seen

"""The demos of playing: what somebody who starts one, or copies from it, counts on."""

from __future__ import annotations

import runpy
import sys
import threading
from collections.abc import Iterator
from itertools import islice, repeat

import numpy as np
import pygame
import pytest
from tiny_world import write_tiny

from demos.background import TIMES, Game, play, player
from demos.gym_loop import RoadFollower
from demos.side_by_side import Pair
from demos.time_travel import SIZE, TimeTravel
from demos.time_travel import player as watched
from runtime.backends.mock import MockBackend
from runtime.env import WorldEnv
from runtime.session import Session
from runtime.stage import Stage
from runtime.world import World

DEMOS = ("background", "gym_loop", "side_by_side", "time_travel")


@pytest.fixture(scope="module")
def tiny_car(tmp_path_factory):
    """A tiny world that names the car's environment."""
    path = tmp_path_factory.mktemp("worlds") / "car.world"
    return write_tiny(path, environment={"id": "CarRacing-v3", "adapter": "car_racing"})


def run(monkeypatch, demo: str, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", [demo, *map(str, options)])
    monkeypatch.delitem(sys.modules, f"demos.{demo}", raising=False)
    runpy.run_module(f"demos.{demo}", run_name="__main__")


@pytest.mark.parametrize("demo", DEMOS)
def test_help_shows_commands_to_copy(monkeypatch, capsys, demo):
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, demo, "--help")
    assert left.value.code == 0
    assert capsys.readouterr().out.count(f"python -m demos.{demo}") == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
@pytest.mark.parametrize("demo", DEMOS)
def test_without_a_display_it_says_what_to_do(monkeypatch, capsys, demo):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, demo, "mock")
    assert left.value.code == 2
    assert "--headless" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("demo", DEMOS)
def test_a_demo_plays_without_a_window_and_writes_its_video(tmp_path, monkeypatch, tiny_car, demo):
    monkeypatch.chdir(tmp_path)
    run(
        monkeypatch,
        demo,
        tiny_car if demo == "side_by_side" else "mock",
        "--headless",
        "--ticks",
        6,
        "--video",
        "v.mp4",
    )
    assert (tmp_path / "v.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("demo", ("background", "side_by_side", "time_travel"))
def test_escape_leaves_the_window(monkeypatch, tiny_car, demo):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.init()
    try:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
        run(monkeypatch, demo, tiny_car if demo == "side_by_side" else "mock")
    finally:
        pygame.quit()


class Stuck(MockBackend):
    """The mock world, whose ticks wait until `gate` is open."""

    gate = threading.Event()

    def tick(self, *given):
        assert self.gate.wait(60)
        return super().tick(*given)


def television(view: pygame.Surface) -> tuple[int, ...]:
    """The colour in the upper part of the television's picture."""
    return tuple(view.get_at((160 * TIMES, 70 * TIMES)))[:3]


def test_the_game_goes_on_while_the_world_is_stuck_and_shows_it_when_it_comes():
    session, game = Session(World.open("mock"), backend=Stuck()), Game()
    pictures = play(session, game, repeat({"left"}))
    try:
        assert [television(view) for view in islice(pictures, 90)] == [(0, 0, 0)] * 90
        assert game.x < 20  # the cat has run all the way
    finally:
        session.backend.gate.set()
    assert any(television(view) != (0, 0, 0) for view in islice(pictures, 3000))
    session.stop_async()
    assert session.last_action == {"gas", "left"}  # where the cat runs, the car drives


def test_return_changes_the_channel(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    session = Session(World.open("mock"))
    pygame.display.init()
    try:
        keys = player(session, Stage("", (8, 8), 60))
        session.tick_async()
        for prompt in session.world.manifest.prompts:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_RETURN))
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_UP))  # a tap shorter than a frame
            assert next(keys) == {"up"}
            assert session.prompt == prompt and session.tick_number == 0
    finally:
        session.stop_async()
        pygame.quit()


def test_a_cat_that_hunts_catches_moths():
    game = Game()
    for _ in range(1800):
        game.advance(game.hunt())
    assert game.caught > 10


def asides(steer: bool) -> Iterator[float]:
    """Where the road ahead lies, tick by tick, with the policy's keys or gas alone."""
    env = WorldEnv("mock")
    policy = RoadFollower(env.session.world.manifest.action_names)
    observation, _ = env.reset(seed=0)
    for _ in range(300):
        action = policy(observation)
        observation, *_ = env.step(action if steer else np.array([0, 0, 1, 0]))
        yield abs(policy.aside)


def test_the_policy_keeps_the_road_in_sight_which_without_steering_is_lost():
    assert max(asides(steer=True)) < 0.5 < max(asides(steer=False))


def test_the_gym_loop_plots_the_episode(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "gym_loop", "mock", "--headless", "--ticks", 20, "--plot", tmp_path / "seen.png")
    assert "20 ticks" in capsys.readouterr().out
    assert pygame.image.load(tmp_path / "seen.png").get_size() == (1200, 500)


def test_environment_and_world_get_the_same_keys_and_text(tiny_car):
    pair = Pair(World.open(tiny_car), seed=3)
    assert pair.session.prompt == pair.scene["captions"][0]
    for _ in range(3):
        pair.tick({"left"})
    assert pair.real.steer < 0
    assert pair.session.last_action == {"left"}
    pair.real.paint("red", (200, 60, 50), "green", (80, 160, 70))
    pair.tick({"brake"})  # the tiny world has no brake
    assert pair.session.prompt == pair.scene["captions"][0] and "red" in pair.session.prompt
    pair.begin()
    assert pair.real.steer == 0 and pair.session.tick_number == 1


def test_without_the_train_extra_it_says_what_to_install(monkeypatch, capsys, tiny_car):
    monkeypatch.delitem(sys.modules, "worldmodel.train.envs.car_racing", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "side_by_side", tiny_car, "--headless")
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("pip install 'worldloop[train]'")


def mouse(game: TimeTravel, kind: int, branch: str, tick: int) -> pygame.event.Event:
    return pygame.event.Event(kind, pos=game.place(branch, tick))


LEFT_ALONE = pygame.event.Event(pygame.MOUSEBUTTONUP)


def test_a_future_that_was_left_by_mouse_stays_as_a_branch_and_can_be_gone_back_to():
    game = TimeTravel(World.open("mock"))
    frames = [game.session.frame]
    for _ in range(40):
        game.play({"gas"})
        frames.append(game.session.frame)

    game.advance([mouse(game, pygame.MOUSEBUTTONDOWN, "main", 30)], ())
    game.advance([mouse(game, pygame.MOUSEMOTION, "main", 15)], {"left"})
    assert game.session.tick_number == 15 and np.array_equal(game.session.frame, frames[14])

    game.advance([LEFT_ALONE], {"left"})  # the key is still held: the world goes on
    game.advance([], ())
    assert game.timeline.current == "branch 2" and game.session.tick_number == 17
    assert origins(game) == {"branch 2": ("main", 15)}

    game.advance([mouse(game, pygame.MOUSEBUTTONDOWN, "main", 41), LEFT_ALONE], ())
    game.advance([], ())
    assert game.timeline.current == "main" and game.session.tick_number == 41  # time stands still
    assert np.array_equal(game.session.frame, frames[40])
    game.play({"gas"})
    assert list(game.timeline.branches) == ["main", "branch 2"]  # no future was left: no new branch


def origins(game: TimeTravel) -> dict[str, tuple[str, int]]:
    return {name: branch.origin for name, branch in game.timeline.branches.items() if branch.origin}


def test_a_key_of_the_world_plays_in_the_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    game = TimeTravel(World.open("mock"))
    with Stage("", SIZE, 1000) as stage:
        ticks = watched(game, stage)
        for kind in (pygame.KEYDOWN, pygame.KEYUP):  # a tap, shorter than a tick
            pygame.event.post(pygame.event.Event(kind, key=pygame.K_LEFT))
        next(ticks)
        assert game.session.last_action == {"left"}
        next(ticks)
        assert not game.session.last_action and game.session.tick_number == 3
    pygame.quit()


def test_a_branch_made_before_its_parents_beginning_belongs_to_the_grandparent():
    game = TimeTravel(World.open("mock"))
    for _ in range(30):
        game.play({"gas"})
    for tick in (20, 10):
        game.go_to(game.timeline.current, game.place(game.timeline.current, tick)[0])
        game.play({"left"})
    assert origins(game) == {"branch 2": ("main", 20), "branch 3": ("main", 10)}


def test_a_click_far_outside_goes_to_the_nearest_tick_there_is():
    game = TimeTravel(World.open("mock"))
    for _ in range(5):
        game.play(set())
    for x, tick in ((-100, 1), (10_000, 6)):
        game.go_to("main", x)
        assert game.session.tick_number == tick
    assert game.draw().get_size()[0] == 640

"""A world is a Gymnasium environment: the checkers agree, seeds decide, players in a batch play as they would alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pygame
import pytest
from tiny_world import write_rolling

gymnasium = pytest.importorskip("gymnasium")

from gymnasium.utils.env_checker import check_env  # noqa: E402

import worldloop  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from runtime.session import Session  # noqa: E402
from runtime.world import World  # noqa: E402


@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_wrong(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    gymnasium.register("worldloop/Mock-v0", entry_point="worldloop:WorldEnv", kwargs={"world": "mock"})
    env = gymnasium.make("worldloop/Mock-v0", render_mode="rgb_array", max_ticks=50)
    check_env(env.unwrapped)


def test_the_window_shows_episodes(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = worldloop.WorldEnv("mock", render_mode="human")
    env.reset(seed=1)
    env.step(np.array([0, 0, 1, 0]))
    assert env.render() is None
    env.close()


@pytest.mark.parametrize("event", [pygame.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE), pygame.Event(pygame.QUIT)])
def test_a_player_may_leave_the_window(monkeypatch, event):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env, still = worldloop.WorldEnv("mock", render_mode="human"), np.zeros(4)
    env.reset(seed=1)
    *_, truncated, info = env.step(still)
    assert not truncated and not info["left"]
    pygame.event.post(event)
    *_, truncated, info = env.step(still)
    assert truncated and info["left"] and not pygame.display.get_init()
    env.reset(seed=1)  # another episode has a window again
    assert env.step(still)[4]["left"] is False
    env.close()


def test_a_seed_and_actions_are_the_session_of_that_seed():
    env, session = worldloop.WorldEnv("mock"), Session(World.open("mock"), seed=9)
    first, info = env.reset(seed=9)
    assert np.array_equal(first, session.tick()) and info["tick"] == 1
    frame, reward, terminated, truncated, _ = env.step(np.array([1, 0, 1, 0], np.int8))
    assert np.array_equal(frame, session.tick({"left", "gas"}))
    assert (reward, terminated, truncated) == (0.0, False, False)
    env.reset(options={"prompt": "a white road"})
    assert env.session.prompt == "a white road"


def test_an_episode_ends_after_its_ticks():
    env = worldloop.WorldEnv("mock", max_ticks=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(3)] == [False, False, True]


def test_rewards_and_ends_are_given_by_worlds_that_tell_them():
    from runtime.env import _reward, _terminated

    state = {"reward": np.array([[0.5], [1.0]], np.float32), "terminated": np.array([0, 1], np.uint8)}
    assert _reward(state).tolist() == [0.5, 1.0] and _terminated(state).tolist() == [False, True]
    assert _reward({"x": np.zeros((2, 3))}).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["mock", "tiny", "rolling"])
def test_players_in_a_batch_play_as_alone(name, tiny_file, tmp_path):
    """In the rolling world frames in flight are made again for those alone who press something new."""
    world = World.open({"mock": "mock", "tiny": tiny_file}.get(name) or write_rolling(tmp_path / "rolling.world"))
    backend = "mock" if name == "mock" else "onnxruntime"
    many = worldloop.WorldVectorEnv(world, 3, backend=backend, threads=1, max_ticks=8)
    alone = [worldloop.WorldEnv(world, backend=backend, threads=1, max_ticks=8) for _ in range(3)]
    frames, _ = many.reset(seed=5)
    assert many.observation_space.contains(frames)
    assert all(
        np.array_equal(frame, env.reset(seed=5 + i)[0])
        for i, (frame, env) in enumerate(zip(frames, alone, strict=True))
    )
    rng = np.random.default_rng(0)
    for tick in range(8):
        actions = rng.integers(0, 2, (3, len(world.manifest.actions)), np.int8)
        frames, _, _, truncated, _ = many.step(actions)
        for frame, env, action in zip(frames, alone, actions, strict=True):
            assert np.abs(frame.astype(int) - env.step(action)[0]).max() <= 1  # a batch may round differently
        assert truncated.tolist() == [tick == 7] * 3
    _, rewards, _, truncated, info = many.step(actions)
    assert info["tick"].tolist() == [1, 1, 1] and not truncated.any() and not rewards.any()


def test_an_unknown_render_mode_is_refused():
    with pytest.raises(UsageError, match="rgb_array"):
        worldloop.WorldEnv("mock", render_mode="ascii")


def test_without_gymnasium_the_rest_works_and_the_error_says_how_to_get_it():
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; sys.modules['gymnasium'] = None\n"
        "import worldloop; worldloop.Session(worldloop.World.open('mock')).tick()\n"
        "try: worldloop.WorldEnv\nexcept worldloop.WorldloopError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install gymnasium" in done.stdout

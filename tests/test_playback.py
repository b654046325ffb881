"""Watching a replay: any speed, any tick, and always the frames that were recorded."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.errors import UsageError
from runtime.loop import Request, Status
from runtime.playback import KEYS, Playback, watch
from runtime.replay import Recorder, Replay, open_replay, play_again
from runtime.session import Session
from runtime.world import World

TICKS = 400


def mock(seed: int = 1) -> Session:
    return Session(World.open("mock"), seed=seed)


@pytest.fixture(scope="module")
def game(tmp_path_factory) -> tuple[Replay, list[np.ndarray]]:
    """A replay in which everything happens, and its frames."""
    path = tmp_path_factory.mktemp("replays") / "game.replay"
    session, rng, saved = mock(), random.Random(0), b""
    recorder = Recorder(path, session, "mock")
    for tick in range(TICKS):
        if tick == 100:
            session.set_prompt("a red road in white snow")
        if tick == 150:
            saved = session.snapshot()
        if tick == 230:
            session.restore(saved)
            recorder.restored(saved, session)
        if tick == 310:
            session.restart()
            recorder.restarted(session)
        frame = session.tick({name for name in session.world.manifest.action_names if rng.random() < 0.4})
        recorder.tick(session, frame)
    recorder.close()
    replay = open_replay(path)
    return replay, [played.frame for played in play_again(replay, mock())]


@pytest.mark.parametrize("kept_states", [1, 3, 1000])
def test_any_tick_can_be_gone_to_however_little_is_kept(game, kept_states):
    replay, frames = game
    playback = Playback(replay, mock(), kept_bytes=kept_states * (len(mock().snapshot()) + 8))
    rng = random.Random(kept_states)
    for tick in [TICKS, 1, 2, 60, 61, *(rng.randint(1, TICKS) for _ in range(12))]:
        playback.leap(tick)
        assert playback.at < tick
        while playback.at < tick:
            played = playback.step()
        assert played.index == tick - 1 and np.array_equal(played.frame, frames[tick - 1])
    assert len(playback._kept) <= kept_states


class Viewer:
    """A screen whose player does something at some passes: keys of KEYS, and the player's own requests."""

    is_open, rewinding = True, False

    def __init__(self, playback: Playback, keys: dict[int, str], asks: dict[int, str], passes: int) -> None:
        self.playback, self.keys, self.asks, self.passes = playback, keys, asks, passes
        self.controls = Controls(KEYS)
        self.shown, self.frames, self.notices = [], [], []

    def requests(self) -> list[Request]:
        now = len(self.shown)
        if now in self.keys:
            self.controls.tap(self.keys[now], 0.0)
        return [Request(self.asks[now])] if now in self.asks else []

    def show(self, frame: np.ndarray, status: Status) -> None:
        self.shown.append(self.playback.at)
        self.frames.append(frame)
        self.is_open = len(self.shown) < self.passes

    def notify(self, text: str, picture: np.ndarray | None = None) -> None:
        self.notices.append(text)


def faked(step: float):
    """A time that goes on when it is looked at, by `step`, and while one sleeps; and that sleep."""
    time = [0.0]

    def now() -> float:
        time[0] += step
        return time[0]

    def sleep(seconds: float) -> None:
        time[0] += seconds

    return now, sleep


def viewed(game, keys=None, asks=None, passes=10_000, tick_s: float = 1e-5, **options) -> tuple[list[int], Viewer]:
    """Which ticks were shown, from 1; each as it was recorded. tick_s: what one tick takes."""
    replay, frames = game
    viewer = Viewer(Playback(replay, mock()), keys or {}, asks or {}, passes)
    clock = Clock(60, *faked(tick_s))
    assert watch(viewer.playback, viewer.controls, viewer, clock, exact=True, **options) is None
    assert all(np.array_equal(frame, frames[at - 1]) for at, frame in zip(viewer.shown, viewer.frames, strict=True))
    return viewer.shown, viewer


def test_at_its_own_rate_every_frame_is_shown_once(game):
    assert viewed(game)[0] == [*range(1, TICKS + 1)]


def test_speed_shows_every_nth_frame_and_the_last(game):
    assert viewed(game, speed=16)[0] == [*range(16, TICKS + 1, 16)]
    shown, viewer = viewed(game, keys={2: "up", 5: "up", 8: "down"}, passes=10)
    assert shown == [1, 2, 4, 6, 8, 12, 16, 20, 22, 24]
    assert viewer.notices == ["tick 4 of 400, 2×", "tick 12 of 400, 4×", "tick 22 of 400, 2×"]


def test_keys_go_back_and_on_and_begin_again(game):
    shown, _ = viewed(game, keys={2: "right", 4: "left"}, asks={6: "restart"}, passes=9)
    assert shown == [1, 2, 302, 303, 3, 4, 1, 2, 3]
    assert viewed(game, keys={1: "left"}, passes=3)[0] == [1, 1, 2]


def test_it_begins_where_it_is_told_to(game):
    assert viewed(game, begin=399)[0] == [399, 400]


def test_paused_it_can_be_stepped_and_sought(game):
    shown, _ = viewed(game, keys={4: "right"}, asks={1: "pause", 3: "step", 6: "pause"}, passes=8)
    assert shown == [1, 1, 1, 2, 302, 302, 303, 304]


def test_a_long_way_is_shown_as_it_is_gone_and_can_be_left(game):
    shown, _ = viewed(game, keys={1: "right", 3: "left"}, tick_s=0.004, passes=5)
    assert 1 < shown[1] < shown[2] < 301 and shown[3] < shown[2]


def test_what_cannot_be_shown_is_refused(tmp_path):
    from runtime.cli.replay import command

    path = tmp_path / "r.replay"
    session = mock()
    recorder = Recorder(path, session, "mock")
    for _ in range(20):
        recorder.tick(session, session.tick())
    recorder.close()
    for wrong in ({"begin": 20}, {"begin": 3, "verify": True}, {"speed": 2, "verify": True}):
        with pytest.raises(UsageError, match=r"--from|--speed"):
            command(Path(path), **{"verify": False, "video": None, "world": None, "json": True, **wrong})

"""On a machine that is too slow the player's policy decides: a slower world, or frames of fewer steps in time."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_world import write_fast

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.governor import Wishes
from runtime.loop import Desk, Status, play
from runtime.replay import Recorder, open_replay, play_again
from runtime.session import Session
from runtime.world import World

COST = {"tick": 0.06, "tick_fast": 0.01}  # seconds, of a period of 0.04
TICKS = 20


class SlowSession(Session):
    """Its ticks take COST, on a clock of its own."""

    time = 0.0

    def tick(self, actions=(), *, graph=None, answers=0):
        self.time += COST[graph or "tick"]
        return super().tick(actions, graph=graph, answers=answers)

    def rehearse(self, graph="tick"):
        self.time += COST[graph]

    def now(self) -> float:
        self.time += 1e-5
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Screen:
    is_open, rewinding = True, False

    def __init__(self) -> None:
        self.frames, self.statuses = [], []

    def requests(self):
        return []

    def show(self, frame: np.ndarray, status: Status) -> None:
        self.frames.append(frame)
        self.statuses.append(status)
        self.is_open = len(self.frames) < TICKS


@pytest.mark.parametrize("policy, graph, late", [("slow", "tick", TICKS - 1), ("degrade", "tick_fast", 0)])
def test_a_slow_machine_gives_up_what_the_player_chose_and_the_replay_knows(tmp_path, policy, graph, late):
    world = World.open(write_fast(tmp_path / "fast.world"))
    session, screen = SlowSession(world, backend="onnxruntime", threads=1, seed=3), Screen()
    desk = Desk(Recorder(tmp_path / "game.replay", session, str(world.path)))
    clock = Clock(world.manifest.tick_hz, session.now, session.sleep)
    report = play(session, Controls(world.manifest.actions), screen, clock, desk, wishes=Wishes("auto", policy))
    desk.recorder.close()
    assert {status.graph for status in screen.statuses} == {graph}
    assert {status.wishes.policy for status in screen.statuses} == {policy}
    assert late <= report.late_ticks <= (TICKS if late else 0)
    again = play_again(open_replay(tmp_path / "game.replay"), Session(world, backend="onnxruntime", threads=1, seed=3))
    assert all(np.array_equal(played.frame, frame) for played, frame in zip(again, screen.frames, strict=True))


def test_fewer_steps_are_another_frame(tmp_path):
    world = World.open(write_fast(tmp_path / "fast.world"))
    full, fast = (Session(world, backend="onnxruntime", threads=1, seed=3) for _ in range(2))
    assert full.graphs == ("tick", "tick_fast")
    assert not np.array_equal(full.tick(), fast.tick(graph="tick_fast"))

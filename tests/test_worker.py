"""A host that must not wait gets the newest finished frame, and nothing from before a reset."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from runtime.errors import ActionError
from runtime.frames import as_dlpack, as_surface
from runtime.session import Session
from runtime.worker import WAITING_AT_MOST, Worker
from runtime.world import World


class Slow:
    """Ticks only when it is let; a frame's first byte counts its ticks."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.ticks: list[frozenset[str]] = []

    def tick(self, actions=(), *, answers=0):
        self.begun.release()
        self.let.acquire()
        self.ticks.append(frozenset(actions))
        return np.full((1, 1, 3), len(self.ticks), np.uint8)


def test_a_slow_tick_never_holds_up_the_host_and_no_tap_is_lost():
    world = Slow()
    worker = Worker(world)
    for number in range(10):  # returns every time although no tick ever finishes
        assert worker.ask({f"key {number}"}, answers=number) is None
        if number == 0:
            world.begun.acquire()  # the first is in work
    world.let.release(1 + WAITING_AT_MOST)
    finished = worker.wait()
    assert finished.frame[0, 0, 0] == len(world.ticks) == 1 + WAITING_AT_MOST and finished.answers == 9
    assert frozenset().union(*world.ticks) == {f"key {number}" for number in range(10)}
    worker.stop()


def test_a_frame_from_before_a_reset_never_comes_out():
    world = Slow()
    worker = Worker(world)
    worker.ask({"old"})
    world.begun.acquire()
    resetting = threading.Thread(target=worker.reset)
    resetting.start()
    while worker.generation == 0:
        pass
    world.let.release()
    resetting.join()
    assert worker.wait() is None
    worker.ask({"new"})
    world.let.release()
    finished = worker.wait()
    assert finished.generation == 1 and finished.tick == 1 and world.ticks == [{"old"}, {"new"}]
    worker.stop()


def test_a_session_ticks_aside_as_it_does_in_line():
    aside, line = Session(World.open("mock"), seed=2), Session(World.open("mock"), seed=2)
    keys = [{"gas"}, {"gas", "left"}, set(), {"right"}]
    for number, pressed in enumerate(keys, 1):
        aside.tick_async(pressed, answers=number)
        finished = aside._worker.wait()
        assert np.array_equal(finished.frame, line.tick(pressed)) and finished.answers == number
    aside.restart()
    aside.tick_async({"gas"})
    finished = aside._worker.wait()
    assert (finished.generation, finished.tick) == (1, 1)
    aside.stop_async()
    line.restart()
    line.tick({"gas"})
    assert aside.snapshot() == line.snapshot()


def test_an_error_reaches_the_host_once():
    session = Session(World.open("mock"))
    session.tick_async({"fly"})
    with pytest.raises(ActionError, match="fly"):
        session._worker.wait()
    session.tick_async({"gas"})
    assert session._worker.wait().tick == 1
    session.stop_async()


def test_frames_go_to_pygame_and_over_dlpack_without_a_copy():
    frame = Session(World.open("mock")).tick({"gas"})
    surface = as_surface(frame)
    assert surface.get_size() == (96, 64) and tuple(surface.get_at((7, 5)))[:3] == tuple(frame[5, 7])
    frame[5, 7] = (1, 2, 3)
    assert tuple(surface.get_at((7, 5)))[:3] == (1, 2, 3)
    assert np.shares_memory(np.from_dlpack(frame), frame)
    assert "dltensor" in repr(as_dlpack(frame))

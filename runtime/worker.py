"""Ticks in a thread of their own, so that a slow world never holds up a fast host.

The networks release Python's lock while they compute; a world in plain Python (the mock one) does not, but is quick.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import numpy as np

WAITING_AT_MOST = 2  # asked ticks that wait; what is asked beyond replaces the newest of them


class Ticking(Protocol):
    def tick(self, actions: Collection[str] = (), *, answers: int = 0) -> np.ndarray: ...


@dataclass(frozen=True)
class Finished:
    """A frame that is ready. generation: how many resets came before it. answers: the newest input that it knew."""

    frame: np.ndarray  # uint8 [height, width, 3]
    tick: int  # since the last reset, from 1
    answers: int
    generation: int


@dataclass(frozen=True)
class _Asked:
    actions: frozenset[str]
    answers: int
    generation: int


class Worker:
    """Ticks a session in a thread. Only this thread touches the session until `stop`, or between `reset` and `ask`."""

    def __init__(self, session: Ticking) -> None:
        self.session = session
        self.generation = 0
        self._asked: deque[_Asked] = deque()
        self._newest: Finished | None = None
        self._ticks = 0
        self._error: BaseException | None = None
        self._busy = self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="worldloop ticks", daemon=True)
        self._thread.start()

    def ask(self, actions: Collection[str], answers: int = 0) -> Finished | None:
        """Ask for a tick and return at once: the newest finished frame, None before the first.

        An error of an earlier tick is raised here. When more ticks wait than allowed, the newest waiting one takes over
        these actions, those that it already had included, so that no tap is lost.
        """
        with self._changed:
            self._raise()
            asked = _Asked(frozenset(actions), answers, self.generation)
            if len(self._asked) >= WAITING_AT_MOST:
                waiting = self._asked.pop()
                asked = _Asked(asked.actions | waiting.actions, max(answers, waiting.answers), self.generation)
            self._asked.append(asked)
            self._changed.notify_all()
            return self._newest

    def reset(self) -> int:
        """Forget what waits, wait for the tick in work, and count a generation: older frames never come out again.

        Afterwards the session belongs to the caller until the next `ask`.
        """
        with self._changed:
            self.generation += 1
            self._asked.clear()
            self._newest, self._ticks = None, 0
            self._changed.wait_for(lambda: not self._busy)
            self._raise()
            return self.generation

    def wait(self, timeout: float | None = None) -> Finished | None:
        """Until nothing waits and nothing is in work, or for `timeout` seconds; the newest frame."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy and not self._asked, timeout)
            self._raise()
            return self._newest

    def stop(self) -> None:
        """Finish the tick in work and end the thread."""
        with self._changed:
            self._stopped = True
            self._asked.clear()
            self._changed.notify_all()
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked or self._stopped)
                if self._stopped:
                    return
                asked = self._asked.popleft()
                self._busy = True
            frame = None
            try:
                frame = self.session.tick(asked.actions, answers=asked.answers)
            except BaseException as error:  # handed to the host, which alone can do something about it
                self._error = error
            with self._changed:
                self._busy = False
                if frame is not None and asked.generation == self.generation:
                    self._ticks += 1
                    self._newest = Finished(frame, self._ticks, asked.answers, asked.generation)
                self._changed.notify_all()

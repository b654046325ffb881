"""Time: one tick every 1/tick_hz seconds, on an absolute schedule, by a time function that the clock is given.

The n-th tick is due at the first one's time plus n periods, so that rounding never adds up. (pygame's own clock
truncates to whole milliseconds and runs 3 % fast at 60 Hz.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

SPIN = 0.0005  # seconds before the deadline at which sleeping stops; the system wakes a sleeper up to this much late


def settle(due: float, period: float, now: float) -> tuple[float, bool]:
    """When a tick that was due at `due` really happens in the schedule, and whether it is late.

    A tick that is less than one period late stays on the schedule: the next ones catch up. One that is later moves the
    schedule: the world is slower than it should be for that moment, instead of rushing to catch up.
    """
    if now <= due:
        return due, False
    return (due if now - due < period else now), True


class Clock:
    """Waits for ticks and counts the late ones. now: seconds, never going back. sleep: rests about that long."""

    def __init__(
        self, tick_hz: float, now: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.period = 1.0 / tick_hz
        self.now = now
        self.sleep = sleep
        self.late_ticks = 0
        self._due: float | None = None  # of the next tick; None: right away

    def wait(self) -> None:
        """Return when the next tick is due; at once if that has passed."""
        now = self.now()
        due, late = settle(now if self._due is None else self._due, self.period, now)
        self.late_ticks += late
        while (left := due - SPIN - self.now()) > 0:
            self.sleep(left)
        while self.now() < due:
            pass
        self._due = due + self.period

    def restart(self) -> None:
        """Begin a new schedule with the next tick: after a pause, the time that has passed is not lateness."""
        self._due = None

"""Time: one tick every 1/tick_hz seconds, on an absolute schedule, by a time function that the clock is given.

The n-th tick is due at the first one's time plus n periods, so that rounding never adds up. (pygame's own clock
truncates to whole milliseconds and runs 3 % fast at 60 Hz.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

SPIN = 0.0005  # seconds before the deadline at which sleeping stops; the system wakes a sleeper up to this much late


def settle(due: float, period: float, now: float, patience: float = 1) -> tuple[float, bool]:
    """When a frame that was due at `due` really comes in the schedule, and whether it is late.

    One that is less than `patience` periods late stays on the schedule: the next ones catch up. One that is later moves
    the schedule: the world is slower than it should be for that moment, instead of rushing to catch up.
    """
    if now <= due:
        return due, False
    return (due if now - due < patience * period else now), True


class Clock:
    """Waits for ticks and counts the late ones. now: seconds, never going back. sleep: rests about that long.

    due: when the frame of this tick is to be shown. patience: see `settle`.
    """

    def __init__(
        self, tick_hz: float, now: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.period = 1.0 / tick_hz
        self.now = now
        self.sleep = sleep
        self.patience = 1.0
        self.late_ticks = 0
        self.due = now()
        self._late = False
        self._next: float | None = None  # when the next frame is due; None: right away

    def wait(self, lead: float = 0.0) -> None:
        """Return `lead` seconds before the next frame is due, to read the input and tick; at once if that has passed.

        Without a lead it returns when the frame is due, and what follows comes after that.
        """
        now = self.now()
        planned = now + lead if self._next is None else self._next
        due, self._late = settle(planned, self.period, now, self.patience)
        self.due = due if due == planned else due + lead
        self.late_ticks += self._late
        self._until(self.due - lead)
        self._next = self.due + self.period

    def hold(self) -> None:
        """Return when the frame is due: frames come at equal distances, however long their ticks took."""
        if not self._late and self.now() > self.due + SPIN:
            self.late_ticks += 1
        self._until(self.due)

    def restart(self) -> None:
        """Begin a new schedule with the next tick: after a pause, the time that has passed is not lateness."""
        self._next = None

    def _until(self, moment: float) -> None:
        while (left := moment - SPIN - self.now()) > 0:
            self.sleep(left)
        while self.now() < moment:
            pass

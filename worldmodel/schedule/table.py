"""Any schedule, written out as the sigmas of a steady tick: what a native world's spec says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from worldmodel.errors import SpecError
from worldmodel.schedule.plan import Commit, Level, Plan


@dataclass(frozen=True)
class ScheduleTable:
    """`sigmas[p][f]` is the noise level at which pass p of a tick sees the f-th frame in flight, the oldest first.

    After the last pass frame 0 is clean and leaves; every other frame moves up one place, so in the next tick frame f
    stands where f - 1 stood. One column is frame-wise few-step denoising (Causal Forcing); one row of rising sigmas
    is a rolling window (Rolling Forcing, arXiv:2509.25161).
    """

    sigmas: tuple[tuple[float, ...], ...]
    joint: ClassVar[bool] = True
    renoise: ClassVar[bool] = True
    commit: ClassVar[Commit] = "pass"
    steady_from: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.sigmas or not self.sigmas[0] or len({len(row) for row in self.sigmas}) != 1:
            raise SpecError(f"schedule.sigmas must be a full table, passes × frames in flight: got {self.sigmas}")
        if self.sigmas[0][-1] != 1.0:
            raise SpecError(f"the newest frame in flight must start from pure noise, sigma 1: got {self.sigmas[0][-1]}")
        for frame in range(self.frames):
            life = [row[frame] for row in self.sigmas] + [self.sigmas[0][frame - 1] if frame else 0.0]
            if sorted(life, reverse=True) != life or life[0] > 1.0 or life[-1] < 0.0:
                raise SpecError(f"sigmas must fall from pass to pass within 1..0: frame {frame} has {life}")

    @property
    def passes(self) -> int:
        """Network passes per tick (NFE)."""
        return len(self.sigmas)

    @property
    def frames(self) -> int:
        """Frames in flight."""
        return len(self.sigmas[0])

    @property
    def noises(self) -> int:
        """Noise tensors a steady tick uses: one to start the newest frame, one for each renewal of noise."""
        return len(self.steady.draws(self.renoise))

    def plan(self, tick: int, reprimed: bool = False) -> Plan:
        """A stream begins, and begins again after a re-prime, by growing the window within a tick."""
        return self.steady if tick else self.reprime

    @property
    def steady(self) -> Plan:
        """A tick while the player's action stays as the frames in flight were told: one walk through the table."""
        return Plan(self._walk(self.frames), self._waiting, self.frames - 1)

    @property
    def reprime(self) -> Plan:
        """A tick that makes all frames in flight anew, because they were told another action.

        The window grows from one frame to all within the tick: walks through the table by one, two, … frames. What was
        in flight is not read, so a changed action shows in the very next frame.
        """
        rows = tuple(row for frames in range(1, self.frames + 1) for row in self._walk(frames))
        return Plan(rows, self._waiting)

    @property
    def fewer(self) -> ScheduleTable | None:
        """Half the passes, evenly chosen, the first and the last among them; None for a table of one pass.

        A tick begins and ends at the same levels with both, so that they play on from each other's states.
        """
        if self.passes == 1:
            return None
        kept = -(-self.passes // 2)
        step = (self.passes - 1) / max(kept - 1, 1)
        return ScheduleTable(tuple(self.sigmas[round(number * step)] for number in range(kept)))

    @property
    def _waiting(self) -> tuple[Level, ...]:
        return tuple(_level(sigma) for sigma in self.sigmas[0][:-1])

    def _walk(self, frames: int) -> tuple[tuple[Level, ...], ...]:
        """One walk by the newest so many frames."""
        return tuple(tuple(_level(sigma) for sigma in row[-frames:]) for row in self.sigmas)


def _level(sigma: float) -> Level:
    return Level(sigma, 1000 * sigma)


def frame_wise(*sigmas: float) -> ScheduleTable:
    """One frame at a time in len(sigmas) passes."""
    return ScheduleTable(tuple((sigma,) for sigma in sigmas))


def rolling(frames: int) -> ScheduleTable:
    """`frames` in flight at evenly rising sigmas, one pass a tick."""
    return ScheduleTable((tuple((f + 1) / frames for f in range(frames)),))

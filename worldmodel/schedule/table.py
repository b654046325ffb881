"""A denoising schedule of the native world as a table, and the one sampler step that walks it."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.errors import SpecError


@dataclass(frozen=True)
class Pass:
    """One network pass over the frames in flight, the oldest first.

    sigmas: the level at which it sees each. after: the level to which it takes each, 0 for clean. enters: a new frame
    of pure noise joins before it.
    """

    sigmas: tuple[float, ...]
    after: tuple[float, ...]
    enters: bool

    @property
    def noises(self) -> int:
        return self.enters + sum(level > 0 for level in self.after)


@dataclass(frozen=True)
class ScheduleTable:
    """`sigmas[p][f]` is the noise level at which pass p of a tick sees the f-th frame in flight, the oldest first.

    After the last pass frame 0 is clean and leaves; every other frame moves up one place, so in the next tick frame f
    stands where f - 1 stood. One column is frame-wise few-step denoising (Causal Forcing); one row of rising sigmas
    is a rolling window (Rolling Forcing, arXiv:2509.25161).
    """

    sigmas: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.sigmas or not self.sigmas[0] or len({len(row) for row in self.sigmas}) != 1:
            raise SpecError(f"schedule.sigmas must be a full table, passes × frames in flight: got {self.sigmas}")
        if self.sigmas[0][-1] != 1.0:
            raise SpecError(f"the newest frame in flight must start from pure noise, sigma 1: got {self.sigmas[0][-1]}")
        for frame in range(self.frames):
            life = [row[frame] for row in self.sigmas] + [self.next_sigma(self.passes - 1, frame)]
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
        """Noise tensors a tick uses: one to start the newest frame, one for each renewal of noise."""
        return self.passes * self.frames

    @property
    def steady(self) -> tuple[Pass, ...]:
        """A tick while the player's action stays as the frames in flight were told: one walk through the table."""
        return self._walk(self.frames)

    @property
    def reprime(self) -> tuple[Pass, ...]:
        """A tick that makes all frames in flight anew, because they were told another action.

        The window grows from one frame to all within the tick: walks through the table by one, two, … frames. What was
        in flight is not read, so a changed action shows in the very next frame.
        """
        return tuple(step for frames in range(1, self.frames + 1) for step in self._walk(frames))

    def _walk(self, frames: int) -> tuple[Pass, ...]:
        """One walk by the newest so many frames."""
        lanes = range(self.frames - frames, self.frames)
        return tuple(
            Pass(tuple(row[f] for f in lanes), tuple(self.next_sigma(p, f) for f in lanes), enters=p == 0)
            for p, row in enumerate(self.sigmas)
        )

    def next_sigma(self, denoising_pass: int, frame: int) -> float:
        """The level a frame is taken to after a pass: 0 for the frame that leaves."""
        if denoising_pass + 1 < self.passes:
            return self.sigmas[denoising_pass + 1][frame]
        return self.sigmas[0][frame - 1] if frame else 0.0


def frame_wise(*sigmas: float) -> ScheduleTable:
    """One frame at a time in len(sigmas) passes."""
    return ScheduleTable(tuple((sigma,) for sigma in sigmas))


def rolling(frames: int) -> ScheduleTable:
    """`frames` in flight at evenly rising sigmas, one pass a tick."""
    return ScheduleTable((tuple((f + 1) / frames for f in range(frames)),))

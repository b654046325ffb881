"""Denoising schedules as tables: which blocks are in flight in every pass, at which noise level, and who leaves.

A tick makes one block. Its plan is a list of rows, one network pass each; row[lane] is the level at which the pass sees
the block of that lane. Lane 0 leaves when the tick ends, the others move up. What differs between few-step, frame-wise,
rolling, diagonal, moving-buffer and stream-batch denoising is the table alone; the sampler that walks it is written
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np

from worldmodel.errors import SpecError


class Level(NamedTuple):
    """A noise level: its sigma, and the timestep that tells the network of it."""

    sigma: float  # 0 clean … 1 pure noise
    timestep: float  # 0 … 1000


LONGEST_TABLE = 1_000_000  # training steps; models have 1,000


@dataclass(frozen=True)
class FlowTable:
    """The training steps of a flow-matching model, whose sigmas are shifted towards noise (SD3's shift.

    Wan's s = 5).
    """

    shift: float = 5.0
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.shift <= 0 or not 1 <= self.steps <= LONGEST_TABLE:
            raise SpecError(
                f"a flow table needs shift > 0 and 1 to {LONGEST_TABLE} steps: got {self.shift} and {self.steps}"
            )

    def at(self, timestep: float) -> Level:
        """The level of a timestep.

        Its sigma is that of the nearest step of the table, so 0 has a small sigma, not 0.
        """
        sigmas, timesteps = _flow_table(self)
        return Level(float(sigmas[np.abs(timesteps - timestep).argmin()]), float(timestep))

    def warp(self, steps: tuple[int, ...]) -> tuple[Level, ...]:
        """Levels of a configured list such as (1000, 750, 500, 250), which counts steps before the shift.

        0 is dropped.
        """
        _, timesteps = _flow_table(self)
        return tuple(self.at(float(timesteps[self.steps - step])) for step in steps if step)


@lru_cache(maxsize=8)
def _flow_table(table: FlowTable) -> tuple[np.ndarray, np.ndarray]:
    # Rounded as torch.linspace does, from both ends: a timestep off by one rounding moves its sinusoid by 1e-4.
    count, step = np.arange(table.steps), np.float64(np.float32(-1 / table.steps))
    up, down = -step * (table.steps - count), 1 + step * count
    plain = np.where(count < (table.steps + 1) // 2, down, up).astype(np.float32)
    sigmas = (table.shift * plain / (1 + (table.shift - 1) * plain)).astype(np.float32)
    return sigmas, (sigmas * np.float32(table.steps)).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """The passes of one tick, for blocks in flight from the oldest (lane 0) on.

    rows:   rows[p][lane], the level at which pass p sees a lane
    after:  levels at which lanes 1, 2, … wait for the next tick
    flying: lanes in flight when the tick starts; a lane beyond them enters as noise in the first row that has it
    """

    rows: tuple[tuple[Level, ...], ...]
    after: tuple[Level, ...] = ()
    flying: int = 0

    @property
    def passes(self) -> int:
        return len(self.rows)

    @property
    def lanes(self) -> int:
        return max(len(row) for row in self.rows)

    def following(self, row: int, lane: int) -> Level | None:
        """The level a lane goes to after a pass; None when it is finished."""
        for later in self.rows[row + 1 :]:
            if lane < len(later):
                return later[lane]
        return self.after[lane - 1] if lane else None

    def draws(self, renoise: bool) -> tuple[int, ...]:
        """The lanes that need a noise tensor in this tick, in the order in which the sampler takes them."""
        order: list[int] = []
        flying = self.flying
        for number, row in enumerate(self.rows):
            order += range(flying, len(row))
            flying = max(flying, len(row))
            if renoise:
                order += [lane for lane in range(len(row)) if self.following(number, lane)]
        return tuple(order)


Commit = Literal["pass", "last"]


class Schedule(Protocol):
    """A table of plans. Frozen; knows nothing of networks."""

    @property
    def joint(self) -> bool:
        """Whether the lanes of a pass see each other."""

    @property
    def renoise(self) -> bool:
        """Whether a lane gets fresh noise at its next level (consistency style) or is moved there by an Euler step."""

    @property
    def commit(self) -> Commit:
        """What the cache is given: the keys and values of a clean pass, or of the last noisy one."""

    @property
    def steady_from(self) -> int:
        """The tick from which all plans are the same."""

    def plan(self, tick: int, reprimed: bool = False) -> Plan:
        """The plan of a tick, counted from the start or from the last re-prime."""


def falling(levels: tuple[Level, ...], what: str) -> tuple[Level, ...]:
    """Check a list of levels: at least one, the first pure noise, sigmas falling."""
    sigmas = [level.sigma for level in levels]
    if not sigmas or sorted(set(sigmas), reverse=True) != sigmas or sigmas[0] > 1.0 or sigmas[-1] <= 0.0:
        raise SpecError(f"{what} must fall from step to step within 1 … 0: got {sigmas}")
    return levels

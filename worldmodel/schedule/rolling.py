"""Rolling window: several blocks in flight, each at its own level; one pass moves all of them one level down."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.errors import SpecError
from worldmodel.schedule.plan import Commit, Level, Plan, falling


@dataclass(frozen=True)
class Rolling:
    """As many blocks in flight as there are levels, seeing each other (Rolling Forcing, arXiv:2509.25161).

    Warm-up: the first tick grows the window from one block to all. Steady state: one pass a tick. Drain: a finite clip
    ends with windows that shrink from the noisy side. Re-prime: an action changed, so what is in flight was made for
    another future and is dropped; then either the next block is made alone and the window grows over the following
    ticks (what Rolling Forcing's training has seen of blocks alone), or it grows at once within the tick.
    """

    levels: tuple[Level, ...]  # from pure noise down
    reprime_alone: bool = True
    commit: Commit = "pass"
    joint: bool = True
    renoise: bool = True

    def __post_init__(self) -> None:
        falling(self.levels, "schedule.levels")

    @property
    def blocks(self) -> int:
        """Blocks in flight."""
        return len(self.levels)

    @property
    def steady_from(self) -> int:
        return self.blocks + 1

    def plan(self, tick: int, reprimed: bool = False) -> Plan:
        if reprimed and self.reprime_alone and tick <= self.blocks:
            return self.grow(tick)
        return self.steady() if tick else self.warm_up()

    def warm_up(self) -> Plan:
        """Windows of one, two, … blocks; the newest is always pure noise."""
        rows = tuple(self.window(newest, newest + 1) for newest in range(self.blocks))
        return Plan(rows, self.after(self.blocks))

    def steady(self) -> Plan:
        return Plan((self.window(self.blocks - 1, self.blocks),), self.after(self.blocks), self.blocks - 1)

    def drain(self, flying: int) -> Plan:
        """One tick of a clip that is to end: no new block enters."""
        if not 0 < flying < self.blocks:
            raise SpecError(f"nothing to drain: {flying} blocks in flight of {self.blocks}")
        return Plan((self.window(self.blocks - 1, flying),), self.after(flying), flying)

    def grow(self, tick: int) -> Plan:
        """After a re-prime: tick 0 makes one block alone, tick g + 1 starts with g in flight and ends with g + 1."""
        last = self.blocks - 1
        alone = tuple((level,) for level in self.levels)
        flying = tick - 1
        if tick == 0 or last == 0:
            return Plan(alone)
        if flying >= last:
            return self.steady()
        joined = (
            (self.levels[last - 1], *self.window(flying - 1, flying)),
            (self.levels[last], *self.window(flying, flying + 1)),
        )
        return Plan(alone[flying : last - 1] + joined, self.window(flying + 1, flying + 1), flying)

    def window(self, oldest: int, blocks: int) -> tuple[Level, ...]:
        """Levels of so many neighbouring blocks, of which the oldest has reached the given level."""
        return tuple(self.levels[oldest - lane] for lane in range(blocks))

    def after(self, blocks: int) -> tuple[Level, ...]:
        return self.window(self.blocks - 1, blocks - 1)

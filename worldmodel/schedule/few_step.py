"""Few-step denoising, block by block: chunk-wise (Self-Forcing), frame-wise (Causal Forcing), diagonal."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.schedule.plan import Commit, FlowTable, Level, Plan, falling


@dataclass(frozen=True)
class FewStep:
    """One block at a time, one pass per level (Self-Forcing, arXiv:2506.08009; Causal Forcing with one frame per
    block).

    The first blocks of a stream may have longer lists of their own; a block after the last of these uses `levels`.
    """

    levels: tuple[Level, ...]
    first: tuple[tuple[Level, ...], ...] = ()  # levels of block 0, 1, …
    commit: Commit = "pass"
    joint: bool = True
    renoise: bool = True

    def __post_init__(self) -> None:
        for number, levels in enumerate((*self.first, self.levels)):
            falling(levels, f"schedule.levels of block {number}")

    @property
    def steady_from(self) -> int:
        return len(self.first)

    def plan(self, tick: int, reprimed: bool = False) -> Plan:
        """A re-prime changes nothing: nothing is in flight between ticks, and the stream has begun already."""
        levels = self.first[tick] if tick < len(self.first) and not reprimed else self.levels
        return Plan(tuple((level,) for level in levels))


def diagonal(table: FlowTable, steps: tuple[tuple[float, ...], ...]) -> FewStep:
    """Diagonal distillation: early blocks take more steps, later ones fewer, and no pass is spent on the commit.

    The cache keeps the keys and values of the last noisy pass, which training has matched. steps: timesteps of block
    0, 1, …; the last list holds for all that follow.
    """
    lists = tuple(tuple(table.at(step) for step in block) for block in steps)
    return FewStep(lists[-1], lists[:-1], commit="last")

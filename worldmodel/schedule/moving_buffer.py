"""Moving buffer: chunks in flight, each inside its own segment of noise levels (StreamDiT)."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.errors import SpecError
from worldmodel.schedule.plan import Commit, Level, Plan


@dataclass(frozen=True)
class MovingBuffer:
    """`chunks` in flight; a tick moves each through its segment in `steps` Euler steps, then the oldest leaves.

    StreamDiT (arXiv:2507.03745). One chunk is ordinary diffusion, one step per segment its distilled form. The
    reference frames of the paper's buffer are the cache's window here. Levels are even in sigma unless a list of bounds
    is given.
    """

    chunks: int
    steps: int = 1
    bounds: tuple[float, ...] = ()  # sigmas between segments, from 1 down to 0; empty: even
    commit: Commit = "pass"
    joint: bool = True
    renoise: bool = False

    def __post_init__(self) -> None:
        if self.chunks < 1 or self.steps < 1:
            raise SpecError(f"schedule.chunks and .steps must be at least 1: got {self.chunks} and {self.steps}")
        edges = self.edges
        if (
            len(edges) != self.chunks + 1
            or sorted(set(edges), reverse=True) != list(edges)
            or (edges[0], edges[-1]) != (1, 0)
        ):
            raise SpecError(f"schedule.bounds must fall from 1 to 0 in {self.chunks} segments: got {self.bounds}")

    @property
    def edges(self) -> tuple[float, ...]:
        return self.bounds or tuple(1 - segment / self.chunks for segment in range(self.chunks + 1))

    @property
    def steady_from(self) -> int:
        return 1

    def plan(self, tick: int, reprimed: bool = False) -> Plan:
        rows = self.warm_up() if tick == 0 else self.segment_steps(self.chunks)
        return Plan(rows, tuple(_level(edge) for edge in reversed(self.edges[1:-1])), self.chunks - 1 if tick else 0)

    def warm_up(self) -> tuple[tuple[Level, ...], ...]:
        return tuple(row for blocks in range(1, self.chunks + 1) for row in self.segment_steps(blocks))

    def segment_steps(self, blocks: int) -> tuple[tuple[Level, ...], ...]:
        """The rows that move so many chunks, the newest of them pure noise, through one segment each."""
        return tuple(tuple(self.level(blocks - 1 - lane, step) for lane in range(blocks)) for step in range(self.steps))

    def level(self, segment: int, step: int) -> Level:
        """Segments count from noise."""
        upper, lower = self.edges[segment], self.edges[segment + 1]
        return _level(upper + (lower - upper) * step / self.steps)


def _level(sigma: float) -> Level:
    return Level(sigma, 1000 * sigma)

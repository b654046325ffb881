"""Prompts over time: which text holds at a tick, and how a switch blends from one embedding to the next."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worldmodel.errors import SpecError

Change = Literal["cross", "recache"]  # renew the prompt's keys alone, or the cached frames as well


@dataclass(frozen=True)
class PromptAt:
    """From this tick on the world follows this embedding [1, rows, dim], reached in `over` ticks (1: at once)."""

    tick: int
    embedding: Tensor
    over: int = 1

    def __post_init__(self) -> None:
        if self.tick < 0 or self.over < 1:
            raise SpecError(f"a prompt needs tick ≥ 0 and over ≥ 1: got {self.tick} and {self.over}")


@dataclass(frozen=True)
class PromptTrack:
    """Prompts scheduled "at tick N"."""

    entries: tuple[PromptAt, ...]

    def __post_init__(self) -> None:
        ticks = [entry.tick for entry in self.entries]
        if not ticks or ticks[0] != 0 or sorted(set(ticks)) != ticks:
            raise SpecError(f"prompts must be ordered by tick, and the first be at 0: got {ticks}")

    def embedding(self, tick: int) -> Tensor:
        """What the world follows at a tick."""
        at = bisect_right([entry.tick for entry in self.entries], tick) - 1
        entry = self.entries[at]
        share = min(1.0, (tick - entry.tick + 1) / entry.over)
        if at == 0 or share == 1.0:
            return entry.embedding
        return blend(self.embedding(entry.tick - 1), entry.embedding, share)

    def change(self, tick: int) -> Change | None:
        """What a tick renews: while a blend is under way the prompt's keys alone, at its end the cached frames too."""
        at = bisect_right([entry.tick for entry in self.entries], tick) - 1
        step = tick - self.entries[at].tick + 1
        if at == 0 or step > self.entries[at].over:
            return "recache" if tick == 0 else None
        return "recache" if step == self.entries[at].over else "cross"


def blend(before: Tensor, after: Tensor, share: float) -> Tensor:
    """Row by row along the great circle, lengths in proportion; rows without length are mixed in a straight line."""
    lengths = [part.norm(dim=-1, keepdim=True) for part in (before, after)]
    one, other = (part / size.clamp(min=1e-12) for part, size in zip((before, after), lengths, strict=True))
    angle = torch.acos((one * other).sum(-1, keepdim=True).clamp(-1, 1))
    straight = (1 - share) * before + share * after
    turned = torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other
    turned = turned / torch.sin(angle).clamp(min=1e-12)
    length = (1 - share) * lengths[0] + share * lengths[1]
    flat = (angle.sin() < 1e-4) | (lengths[0] == 0) | (lengths[1] == 0)
    return torch.where(flat, straight, turned * length)

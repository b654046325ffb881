"""Re-anchored sink: the first block stands right before the recent frames, wherever these are (Rolling Forcing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from worldmodel.cache.base import Reading, State, count_up
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.errors import SpecError


@dataclass(frozen=True)
class RollingSink(SinkWindow):
    """The first block and the latest ones, read differently by noisy and by clean queries (arXiv:2509.25161).

    Noisy queries see [sink | recent | themselves], `attention` frames in all; the sink stands right before the recent
    frames, which stand at their absolute positions. Clean queries see the last `attention` frames of the cache at their
    own positions: as long as these reach back to its start the sink is among them, afterwards it is not seen at all.
    """

    attention: int = 21  # frames that one query may see, itself included
    clean_apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sink != self.chunk:
            raise SpecError(f"a rolling sink is the first chunk: got cache.sink={self.sink}, cache.chunk={self.chunk}")
        if self.attention < self.sink + self.chunk:
            raise SpecError(f"cache.attention must hold the sink and one chunk: got {self.attention}")

    def read(self, state: State, frames: int, ahead: int = 0, clean: bool = False) -> Reading:
        following = state["cache.next"][:, None]
        budget = self.attention - frames - (0 if clean else self.sink)
        recent = max(0, min(budget, self.ring - self.chunk))
        ring = following - recent + count_up(recent, following)
        kept = count_up(self.sink, following).expand(len(following), -1)
        # Frames of the cache's start that the last `attention` frames do not reach.
        cut = (following + self.chunk).clamp(max=self.window) - self.attention
        if clean:
            sink_position, sink_valid = kept, (following > 0) & (kept >= cut)
        else:
            glued = (following - self.sink).clamp(min=0, max=recent)  # recent frames that there are
            sink_position, sink_valid = following - glued - self.sink + kept, (following > 0).expand_as(kept)
        slots = torch.cat([kept, self.ring_slot(ring)], 1)
        # Where the cut goes through the sink, the public code reads the rest of it without rotation.
        raw = torch.cat([(cut > 0).expand_as(kept), torch.zeros_like(ring, dtype=torch.bool)], 1) if clean else None
        return Reading(
            slots=slots,
            frames=state["cache.frame"].gather(1, slots),
            positions=torch.cat([sink_position, ring], 1),
            valid=torch.cat([sink_valid, ring >= self.sink], 1),
            query_positions=following + ahead + count_up(frames, following),
            unrotated=raw,
        )

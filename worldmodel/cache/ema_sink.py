"""EMA sink: what leaves the window is fused into the sink instead of being forgotten (Reward Forcing)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldmodel.cache.base import Reading, State, count_up, gather, write
from worldmodel.cache.sink_window import RelativeSinkWindow
from worldmodel.errors import SpecError


@dataclass(frozen=True)
class EmaSink(RelativeSinkWindow):
    """A sink window whose sink is a moving average, sink ← α·sink + (1−α)·leaving (Reward Forcing, arXiv:2512.04678).

    Keys (after their norm, not rotated) and values are averaged frame by frame and token by token. The frames that make
    room for a block are fused before the block is denoised for the first time, so the block already sees the fused
    sink. Where more or fewer frames leave than the sink has, they take the place of the sink's first ones, as in the
    public code.
    """

    alpha: float = 0.999  # the sink's share in each fusion

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sink < 1:
            raise SpecError(f"an EMA sink needs cache.sink of at least 1 frame: got {self.sink}")
        if not 0.0 <= self.alpha <= 1.0:
            raise SpecError(f"cache.alpha must lie within 0..1: got {self.alpha}")

    def read(self, state: State, frames: int, ahead: int = 0, clean: bool = False) -> Reading:
        reading = super().read(state, frames, ahead, clean)
        leaving, weight = self._fusion(state)
        beside = torch.cat([leaving, reading.slots[:, self.sink :]], 1)
        rest = torch.zeros(len(leaving), reading.slots.shape[1] - self.sink, 2, device=weight.device)
        rest[..., 0] = 1.0
        # The public code reads its whole sink from the first block on: frames that it does not have yet are zeros.
        absent = reading.slots >= (state["cache.next"] + self.chunk)[:, None]
        valid = torch.cat([(reading.valid | absent)[:, : self.sink], reading.valid[:, self.sink :]], 1)
        return replace(reading, valid=valid, partner=beside, weight=torch.cat([weight, rest], 1))

    def make_room(self, state: State, in_place: bool = False) -> State:
        leaving, weight = self._fusion(state)
        sink = count_up(self.sink, leaving).expand_as(leaving)
        view = Reading(sink, sink, sink, sink >= 0, sink, partner=leaving, weight=weight)
        stores = [name for name in state if name.startswith("kv.")]
        return {
            **state,
            **{name: write(state[name], sink, gather(state[name], view), in_place=in_place) for name in stores},
        }

    def _fusion(self, state: State) -> tuple[Tensor, Tensor]:
        """Slots of the frames that meet the sink's frames, [batch, sink], and the weights of both, [batch, sink, 2]."""
        following = state["cache.next"][:, None]
        count = count_up(self.sink, following)
        leaves = (following.clamp(max=self.window) + self.chunk - self.window).clamp(min=0)  # [batch, 1] frames
        oldest = (following - self.ring).clamp(min=self.sink)
        own = torch.where(leaves == self.sink, self.alpha, torch.where(count < leaves, 0.0, 1.0))
        return self.ring_slot(oldest + count), torch.stack([own, 1 - own], -1).float()

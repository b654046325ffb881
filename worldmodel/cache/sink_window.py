"""Static sink and sliding window: the first frames for ever, and the latest ones (Self-Forcing, LongLive)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from worldmodel.cache.base import Reading, Renewal, State, count_up, write
from worldmodel.errors import SpecError


@dataclass(frozen=True)
class SinkWindow:
    """Remember the first `sink` frames and the latest, `window` in all, at their absolute positions.

    With sink = 0 this is the sliding window of Self-Forcing (arXiv:2506.08009), with a sink LongLive's frame sink
    (arXiv:2509.22622): distances to the sink grow without bound. A window as long as the game is full attention.
    """

    window: int  # frames that attention reads, the sink and the block being made included
    sink: int = 0  # frames
    chunk: int = 1  # frames committed together

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.sink < 0:
            raise SpecError(f"cache.chunk must be at least 1 and cache.sink at least 0: got {self.chunk}, {self.sink}")
        if self.window < self.sink + self.chunk:
            raise SpecError(
                f"cache.window must hold the sink and one chunk: got {self.window}, "
                f"need at least {self.sink + self.chunk}"
            )

    clean_apart: ClassVar[bool] = False

    @property
    def slots(self) -> int:
        return self.window

    @property
    def ring(self) -> int:
        """Slots that are used in turn."""
        return self.window - self.sink

    def read(self, state: State, frames: int, ahead: int = 0, clean: bool = False) -> Reading:
        following = state["cache.next"][:, None]  # [batch, 1]
        recent = self.ring - self.chunk  # frames that stay when the block being made has been given room
        ring = following - recent + count_up(recent, following)
        kept = count_up(self.sink, following).expand(following.shape[0], -1)  # len() would be a constant in a graph
        slots = torch.cat([kept, self.ring_slot(ring)], 1)
        held = state["cache.frame"].gather(1, slots)
        valid = torch.cat([kept < following, ring >= self.sink], 1)
        in_cache = torch.cat([kept, self.local(ring, following)], 1)
        ahead_of = following + ahead + count_up(frames, following)
        return Reading(
            slots=slots,
            frames=held,
            positions=self.position(held, in_cache),
            valid=valid,
            query_positions=self.position(ahead_of, self.local(ahead_of, following)),
        )

    def position(self, frame: Tensor, in_cache: Tensor) -> Tensor:
        """Temporal position of a frame, from its number and from its place in the cache."""
        return frame

    def local(self, frame: Tensor, following: Tensor) -> Tensor:
        """Place in the cache (sink first) of a frame that is not in the sink, once the next block has been given
        room.
        """
        return frame - following + following.clamp(max=self.window - self.chunk)

    def early(self, state: State) -> int:
        """None: every frame is committed clean."""
        return 0

    def make_room(self, state: State, in_place: bool = False) -> State:
        """Nothing is kept of what leaves; it is overwritten."""
        return state

    def fill(self, state: State, fresh: State, in_place: bool = False) -> State:
        count = int(next(iter(fresh.values())).shape[2])
        following = state["cache.next"][:, None]
        slots = self.slot(following + count_up(count, following))
        stored = {name: write(state[name], slots, value, in_place=in_place) for name, value in fresh.items()}
        return {**self.book(state, count), **stored}

    def book(self, state: State, count: int) -> State:
        following = state["cache.next"][:, None]
        frames = following + count_up(count, following)
        held = state["cache.frame"].scatter(1, self.slot(frames), frames)
        return {**state, "cache.frame": held, "cache.next": state["cache.next"] + count}

    def slot(self, frame: Tensor) -> Tensor:
        """Where a frame is kept: in the sink if it is one of the first, else in the ring."""
        return torch.where(frame < self.sink, frame, self.ring_slot(frame))

    def ring_slot(self, frame: Tensor) -> Tensor:
        return self.sink + (frame - self.sink) % self.ring

    def renew(self, state: State, keep_sink: bool) -> Renewal:
        """The last `window` frames are computed again (LongLive's KV-recache), seeing each other without a mask.

        The sink keeps what it has if keep_sink, unless nothing has left the cache yet; otherwise the oldest of the
        renewed frames become the new sink.
        """
        following = state["cache.next"][:, None]
        oldest = following - self.window
        count = count_up(self.window, following)
        frames = oldest + count
        kept = (oldest > 0) if keep_sink else torch.zeros_like(oldest, dtype=torch.bool)  # [batch, 1]
        into_sink = count < self.sink
        live = (frames >= 0) & ~(kept & into_sink)
        to_sink = torch.where(oldest > 0, count.expand_as(frames), self.slot(frames.clamp(min=0)))
        slots = torch.where(into_sink | (frames < self.sink), to_sink, self.ring_slot(frames))
        in_cache = count - (self.window - following).clamp(min=0)
        sink_slots = count_up(self.sink, following).expand(len(following), -1)
        held = state["cache.frame"][:, : self.sink]
        context = Reading(
            slots=sink_slots,
            frames=held,
            positions=self.position(held, sink_slots),
            valid=kept.expand(-1, self.sink),
            query_positions=self.position(frames, in_cache).clamp(min=0),
        )
        return Renewal(frames, slots, live, context)


@dataclass(frozen=True)
class RelativeSinkWindow(SinkWindow):
    """The same frames, standing at their places in the cache: 0, 1, 2, … however long the game lasts.

    LongLive's unbounded variant. Positions never exceed the window, so training has seen every one of them.
    """

    def position(self, frame: Tensor, in_cache: Tensor) -> Tensor:
        return in_cache

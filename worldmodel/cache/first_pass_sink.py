"""A sink of more than one chunk as LongLive's code keeps it: what stays is what the first noisy pass made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldmodel.cache.base import Reading, Renewal, State
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.errors import SpecError


@dataclass(frozen=True)
class FirstPassSink(SinkWindow):
    """A sink window whose later chunks enter the sink as noise (LongLive, arXiv:2509.22622, its code of February 2026).

    That code writes the cache in every pass and guards the sink against all but the first pass over a chunk, the
    stream's first chunk excepted. So frames of the sink behind the first chunk keep the keys and values of a pass over
    pure noise, and the later passes over their own chunk see these, too. Its attention also reads the whole sink before
    there is one: frames that are still to come are zeros. With a sink within one chunk, as published, nothing of this
    happens and this is `SinkWindow`. To be had for parity; a world of one's own has no reason to want it.
    """

    def early(self, state: State) -> int:
        """Frames of the next chunk that belong to the sink, but for the first chunk."""
        counts = {min(max(self.sink - start, 0), self.chunk) if start else 0 for start in state["cache.next"].tolist()}
        if len(counts) > 1:
            raise SpecError("players of one batch must be at the same frame while this sink fills: start them together")
        return counts.pop()

    def read(self, state: State, frames: int, ahead: int = 0, clean: bool = False) -> Reading:
        reading = super().read(state, frames, ahead, clean)
        to_come = (reading.slots >= state["cache.next"][:, None] + ahead + frames) & (reading.slots < self.sink)
        return replace(reading, valid=reading.valid | to_come)

    def renew(self, state: State, keep_sink: bool) -> Renewal:
        renewal = super().renew(state, keep_sink)
        to_come = renewal.context.slots >= state["cache.next"][:, None]
        return replace(renewal, context=replace(renewal.context, valid=renewal.context.valid | to_come))

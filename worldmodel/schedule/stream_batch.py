"""Stream batch: blocks at different levels share a pass without seeing each other (StreamDiffusion)."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.schedule.rolling import Rolling


@dataclass(frozen=True)
class StreamBatch(Rolling):
    """Pipelining of few-step denoising: one call a tick, each lane on its own (StreamDiffusion, arXiv:2312.12491).

    The levels and the walk are those of a rolling window; the lanes do not attend to each other, and a block starts
    before the ones in front of it are in the cache.
    """

    joint: bool = False

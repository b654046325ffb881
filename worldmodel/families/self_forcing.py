"""Self-Forcing (arXiv:2506.08009): Wan 1.3B distilled to four steps a block of three latent frames.

The published window is 21 frames; a stream that goes on slides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.sink_window import SinkWindow
from worldmodel.families.family import Shapes
from worldmodel.families.wan_world import (
    WanWorld,
    WanWorldSpec,
    read_codec,
    rename,
    size_of,
    text_to_video,
    wrapped,
)
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

__all__ = ["build", "matches", "rename"]

STEPS = (1000, 750, 500, 250)  # denoising steps before the shift


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """A text-to-video transformer inside `generator_ema` or `generator`."""
    spec, found = text_to_video(shapes, config), wrapped(config)
    if spec is None or not (found.part.startswith("generator")):
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="Self-Forcing",
        transformer=spec,
        cache=SinkWindow(window=21, chunk=3),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

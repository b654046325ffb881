"""Causal Forcing and Causal Forcing++.

Frame by frame in one or two steps, the first frame in four; or block by block.
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

FIRST = (1000, 750, 500, 250)  # denoising steps before the shift, of the first frame and of blocks of three
LATER = {"1step": (1000,), "2step": (1000, 500)}  # of the frames after it, by the file's name


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """By the file's name: the weights and their wrapping are those of Self-Forcing."""
    spec, name = text_to_video(shapes, config), wrapped(config).file.lower()
    later = next((steps for word, steps in LATER.items() if word in name), None)
    if spec is None or not (later or "causal_forcing" in name):
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    whole = FewStep(table.warp(FIRST))
    return WanWorldSpec(
        title="Causal Forcing++" if later else "Causal Forcing",
        transformer=spec,
        cache=SinkWindow(window=21, chunk=1 if later else 3),
        schedule=FewStep(table.warp(later), (table.warp(FIRST),)) if later else whole,
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

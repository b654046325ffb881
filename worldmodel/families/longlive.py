"""LongLive (arXiv:2509.22622): a frame sink, a short window, and a cache that is renewed when the prompt changes.

Published as a base, which alone is a model of short clips, and a LoRA that is merged into it.
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
    """A base whose LoRA has been merged, or by the file's name."""
    spec, found = text_to_video(shapes, config), wrapped(config)
    if spec is None or not (config.get("lora") or "longlive" in found.file.lower()):
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="LongLive",
        transformer=spec,
        cache=SinkWindow(window=12, sink=3, chunk=3),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

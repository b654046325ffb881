"""Rolling Forcing (arXiv:2509.25161): five blocks in flight, one pass and one clean pass a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.rolling_sink import RollingSink
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
from worldmodel.schedule.plan import FlowTable
from worldmodel.schedule.rolling import Rolling

__all__ = ["build", "matches", "rename"]

STEPS = (1000, 800, 600, 400, 200)  # denoising steps before the shift


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """By the file's name, or by the sharding wrapper that its `generator_ema` still has inside a critic's file."""
    spec, found = text_to_video(shapes, config), wrapped(config)
    if spec is None or not ("rolling" in found.file.lower() or (found.infixes and "critic" in found.others)):
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="Rolling Forcing",
        transformer=spec,
        cache=RollingSink(window=24, sink=3, chunk=3, attention=21),
        schedule=Rolling(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

"""minWM (github.com/shengshu-ai/minWM): Wan 1.3B steered by a camera, block by block in four steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.sink_window import SinkWindow
from worldmodel.families.family import Shapes
from worldmodel.families.wan_world import WanWorld, WanWorldSpec, read_codec, read_transformer, rename, size_of
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

__all__ = ["build", "matches", "rename"]

STEPS = (1000, 750, 500, 250)  # denoising steps before the shift


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """A Wan transformer whose self-attention has a camera branch."""
    spec = read_transformer(shapes, config)
    if spec is None or not spec.camera:
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="minWM",
        transformer=spec,
        cache=SinkWindow(window=20, chunk=4),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

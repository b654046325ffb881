"""Reward Forcing (arXiv:2512.04678): a short window whose sink is a moving average of what left it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.ema_sink import EmaSink
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
    """A flat file whose names all begin with `model.`, as no other of these has it; or by its name."""
    spec, found = text_to_video(shapes, config), wrapped(config)
    if spec is None or not ("reward" in found.file.lower() or (not found.part and found.prefix == "model.")):
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="Reward Forcing",
        transformer=spec,
        cache=EmaSink(window=9, sink=3, chunk=3, alpha=0.999),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

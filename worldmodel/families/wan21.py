"""Wan 2.1 text-to-video (arXiv:2503.20314), 1.3B and 14B: not distilled, not causal; many steps with guidance.

It plays clip by clip: 21 latent frames denoised together, the next clip after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.sink_window import SinkWindow
from worldmodel.families.family import Shapes
from worldmodel.families.wan_world import WanWorld, WanWorldSpec, read_codec, rename, size_of, text_to_video
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

__all__ = ["build", "matches", "rename"]

STEPS = tuple(range(1000, 0, -20))  # before the shift
CLIP = 21  # latent frames
GUIDANCE = 5.0


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """Any text-to-video transformer that no other family has claimed."""
    spec = text_to_video(shapes, config)
    if spec is None:
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="Wan 2.1 T2V",
        transformer=spec,
        cache=SinkWindow(window=2 * CLIP, chunk=CLIP),
        schedule=FewStep(table.warp(STEPS), renoise=False),
        rows=rows,
        columns=columns,
        guidance=GUIDANCE,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

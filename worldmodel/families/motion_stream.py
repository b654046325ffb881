"""Worlds whose things are dragged with the mouse while they run (MotionStream, arXiv:2511.01266).

Its weights are not published. What is recognised here is a Wan transformer, trained by whoever wants one, with a track
head beside it: `track_head.mix.{0,2}.{weight,bias}`, see condition/tracks.py. Cache and steps follow the paper: blocks
of three frames, one block of sink, a short window; step list of Self-Forcing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.sink_window import RelativeSinkWindow
from worldmodel.condition.tracks import TrackSpec
from worldmodel.families.family import Shapes
from worldmodel.families.wan_world import WanWorld, WanWorldSpec, read_codec, read_transformer, rename, size_of
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

__all__ = ["build", "matches", "rename"]

STEPS = (1000, 750, 500, 250)  # denoising steps before the shift
HEAD = "track_head.mix.0.weight"


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """A Wan transformer with a track head beside it."""
    spec = read_transformer(shapes, config)
    if spec is None or HEAD not in shapes:
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="MotionStream",
        transformer=spec,
        cache=RelativeSinkWindow(window=9, sink=3, chunk=3),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
        tracks=TrackSpec(channels=shapes[HEAD][1] // TrackSpec.growth, out=shapes[HEAD][0]),
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

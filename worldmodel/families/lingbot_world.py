"""LingBot-World (arXiv:2601.20540, github.com/Robbyant/lingbot-world): Wan 2.2 image-to-video, steered by a camera.

The camera is a map of rays that scales and shifts every token in every block. Played as its streaming code does
(wan/image2video_fast.py): blocks of three frames in four steps. That keeps a whole clip in its cache; a game that goes
on has a window of a clip's length. The published weights are two experts for noisy and less noisy steps; a file of one
is played for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.sink_window import SinkWindow
from worldmodel.families.family import Shapes
from worldmodel.families.wan_world import WanWorld, WanWorldSpec, read_codec, read_transformer, rename, size_of
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

__all__ = ["build", "matches", "rename"]

STEPS = (1000, 821, 642, 321)  # denoising steps before the shift: 0, 179, 358 and 679 steps down from pure noise
CLIP = 21  # latent frames


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """A Wan transformer whose tokens are told of camera rays."""
    spec = read_transformer(shapes, config)
    if spec is None or not spec.ray_side:
        return None
    rows, columns = size_of(config, 60, 104)
    table = FlowTable(shift=5.0)
    return WanWorldSpec(
        title="LingBot-World",
        transformer=spec,
        cache=SinkWindow(window=CLIP, chunk=3),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        codec=read_codec(shapes),
        table=table,
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

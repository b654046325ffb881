"""Matrix-Game 2 (github.com/SkyworkAI/Matrix-Game): an image-to-video transformer steered by keyboard and mouse.

It takes no text: what it is told of the scene is a start picture, as the image encoder's tokens and as channels beside
the latents (condition/start_picture.py). Without one it begins with what it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldmodel.cache.sink_window import SinkWindow
from worldmodel.families.family import Shapes, whole_number
from worldmodel.families.wan_world import (
    IMAGE_TOKENS,
    WanWorld,
    WanWorldSpec,
    read_codec,
    read_transformer,
    rename,
    size_of,
)
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

__all__ = ["build", "matches", "rename"]

STEPS = (1000, 666, 333)  # denoising steps before the shift
KEYBOARDS = {4: ("w", "s", "a", "d"), 2: ("a", "d"), 7: ("w", "s", "a", "d", "q", "e", "space")}  # by their number


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
    """A Wan transformer with action modules."""
    spec = read_transformer(shapes, config)
    if spec is None or spec.actions is None:
        return None
    rows, columns = size_of(config, 44, 80)
    table = FlowTable(shift=5.0)
    numbered = tuple(str(key + 1) for key in range(spec.actions.keys))
    return WanWorldSpec(
        title="Matrix-Game 2",
        transformer=spec,
        cache=SinkWindow(window=6, chunk=3),
        schedule=FewStep(table.warp(STEPS)),
        rows=rows,
        columns=columns,
        picture_hz=25.0,
        image_tokens=whole_number(config, "image_tokens", IMAGE_TOKENS),
        codec=read_codec(shapes),
        table=table,
        keyboard=KEYBOARDS.get(spec.actions.keys, numbered),
    )


def build(spec: WanWorldSpec) -> WanWorld:
    return WanWorld(spec)

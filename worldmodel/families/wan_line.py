"""The text-to-video checkpoints whose weights have Wan 2.1's own names and shapes: one table.

What differs between them is the cache, the schedule, and how their files are told apart: by how the weights are
wrapped, then by the file's name. One more of this kind is an entry here and its line in family.py; what has other
weights is a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from worldmodel.cache.base import Cache
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.families.checkpoint import Found
from worldmodel.families.family import STATED, Shapes, stated
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
from worldmodel.schedule.plan import FlowTable, Schedule
from worldmodel.schedule.rolling import Rolling

TABLE = FlowTable(shift=5.0)
FOUR, FIVE = TABLE.warp((1000, 750, 500, 250)), TABLE.warp((1000, 800, 600, 400, 200))
CLIP = 21  # latent frames that Wan 2.1 itself was trained on


@dataclass(frozen=True)
class WanLine:
    """One family of the line.

    claims: whether a file, its config beside, is of this family. variants: of the same family, asked first.
    """

    title: str
    cache: Cache
    schedule: Schedule
    claims: Callable[[Found, Mapping[str, Any]], bool]
    guidance: float | None = None
    variants: tuple[WanLine, ...] = ()

    def matches(self, shapes: Shapes, config: Mapping[str, Any]) -> WanWorldSpec | None:
        for variant in self.variants:
            if (found := variant.matches(shapes, {**config, STATED: None})) is not None:
                return found
        spec = text_to_video(shapes, config)
        if spec is None or not (stated(config) or self.claims(wrapped(config), config)):
            return None
        rows, columns = size_of(config, 60, 104)
        return WanWorldSpec(
            title=self.title,
            transformer=spec,
            cache=self.cache,
            schedule=self.schedule,
            rows=rows,
            columns=columns,
            guidance=self.guidance,
            codec=read_codec(shapes),
            table=TABLE,
        )

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(weights)

    def build(self, spec: WanWorldSpec) -> WanWorld:
        return WanWorld(spec)


def named(*words: str) -> Callable[[Found, Mapping[str, Any]], bool]:
    """By the file's name."""
    return lambda found, config: any(word in found.file.lower() for word in words)


# arXiv:2509.22622: a frame sink, a short window, the cache renewed when the prompt changes. Published as a base, which
# alone is a model of short clips, and a LoRA that is merged into it.
longlive = WanLine(
    "LongLive",
    SinkWindow(window=12, sink=3, chunk=3),
    FewStep(FOUR),
    lambda found, config: bool(config.get("lora")) or "longlive" in found.file.lower(),
)

# arXiv:2509.25161: five blocks in flight, one pass and one clean pass a block. Its `generator_ema` still has the
# sharding wrapper, inside a critic's file.
rolling_forcing = WanLine(
    "Rolling Forcing",
    RollingSink(window=24, sink=3, chunk=3, attention=21),
    Rolling(FIVE),
    lambda found, config: "rolling" in found.file.lower() or bool(found.infixes and "critic" in found.others),
)

# arXiv:2602.02214, 2605.15141: the weights and their wrapping are those of Self-Forcing. Block by block, or frame by
# frame in one or two steps after a first frame in four.
causal_forcing = WanLine(
    "Causal Forcing",
    SinkWindow(window=21, chunk=3),
    FewStep(FOUR),
    named("causal_forcing"),
    variants=tuple(
        WanLine("Causal Forcing++", SinkWindow(window=21), FewStep(TABLE.warp(steps), (FOUR,)), named(word))
        for word, steps in (("1step", (1000,)), ("2step", (1000, 500)))
    ),
)

# arXiv:2512.04678: a short window whose sink is a moving average of what left it. A flat file whose names all begin
# with `model.`, as no other of these has it.
reward_forcing = WanLine(
    "Reward Forcing",
    EmaSink(window=9, sink=3, chunk=3, alpha=0.999),
    FewStep(FOUR),
    lambda found, config: "reward" in found.file.lower() or (not found.part and found.prefix == "model."),
)

# arXiv:2506.08009: the published window is 21 frames; a stream that goes on slides it.
self_forcing = WanLine(
    "Self-Forcing",
    SinkWindow(window=21, chunk=3),
    FewStep(FOUR),
    lambda found, config: found.part.startswith("generator"),
)

# arXiv:2503.20314, 1.3B and 14B: not distilled, not causal; many steps with guidance, clip after clip.
wan21 = WanLine(
    "Wan 2.1 T2V",
    SinkWindow(window=2 * CLIP, chunk=CLIP),
    FewStep(TABLE.warp(tuple(range(1000, 0, -20))), renoise=False),
    lambda found, config: True,  # what no other family has claimed
    guidance=5.0,
)

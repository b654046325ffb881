"""What teacher and critic take a noised clip for: block by block, each given the clean blocks before it.

Each network reads a clip as its family plays one: through its own cache, in blocks of its own size. The block of
Wan 2.1 is a whole clip, so it sees all frames at once, as the papers' bidirectional scores do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.cache.base import Cache
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.errors import SpecError
from worldmodel.families.wan_transformer import WanTransformer
from worldmodel.families.wan_world import WanWorldSpec
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import Level
from worldmodel.schedule.sampler import Stream

ANY = FewStep((Level(1.0, 1000.0),))  # a score is asked at levels of its own


def reader(spec: WanWorldSpec, transformer: WanTransformer, frames: int, guidance: float | None = None) -> Stream:
    """What reads clips of so many latent frames. guidance: how far beyond the conditional score, if any."""
    return Stream(
        transformer, clip_cache(spec, frames), ANY, (spec.rows, spec.columns), commit_level=spec.table.at(0),
        guidance=None if guidance is None else 1 + guidance,
    )  # fmt: skip


def clip_cache(spec: WanWorldSpec, frames: int) -> Cache:
    """The family's own, whose blocks must go into a clip; a block that is larger than it becomes as large."""
    if spec.cache.chunk > frames:
        return SinkWindow(window=frames, chunk=frames)
    if frames % spec.cache.chunk:
        raise SpecError(f"--frames {frames}: must be a multiple of {spec.title}'s blocks of {spec.cache.chunk} frames")
    return spec.cache


def denoised(stream: Stream, clean: Tensor, noisy: Tensor, sigma: float, prompt: Tensor, blank: Tensor) -> Tensor:
    """x0 of every frame, float32, with the gradient of the passes that made them.

    clean, noisy: [batch, frames, channels, rows, columns]. sigma: the noise level of all frames of all clips.
    prompt: [batch, rows, dim]. blank: [1, rows, dim], for guidance.
    """
    dtype, chunk = stream.model.head.modulation.dtype, stream.cache.chunk
    stream, level = replace(stream, _levels={}), Level(sigma, 1000 * sigma)
    state = stream.prompted(stream.empty(len(clean)), prompt.to(dtype))
    if stream.guidance is not None:
        state = stream.prompted(state, blank.to(dtype).expand_as(prompt), branch="uncond.")
    made: list[Tensor] = []
    for number, seen in enumerate(noisy.split(chunk, 1)):
        if number:
            with torch.no_grad():
                state = stream.append(state, clean[:, (number - 1) * chunk : number * chunk].to(dtype))
        made.append(seen.float() - sigma * stream.velocity(state, seen.to(dtype), (level,)).float())
    return torch.cat(made, 1)

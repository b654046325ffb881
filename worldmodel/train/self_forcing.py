"""The world's own roll-outs as training history, so that its errors do not compound (Self Forcing, arXiv:2506.08009).

The world plays from recorded starts under recorded keys, with cache and schedule as at play and without gradient. The
frames that it makes then take the place of the recorded history, while what is to be denoised stays the recording,
which the keys determine for the first ticks: it learns to lead its own errors home. Noise levels are those of diffusion
training, so that where the future is open it is a choice that is learned and not the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.tick import World, next_latent
from worldmodel.train.preview import begin_play, tell
from worldmodel.transformer.clip import Clip

FADING = 0.9  # weight of each tick relative to the one before: what the recording says binds less and less


@torch.no_grad()
def play_out(world: World, clip: Clip, begin: int, draw: torch.Generator) -> Tensor:
    """The clip's latents, of which those after frame `begin` are the world's own, played under the clip's keys."""
    schedule = world.spec.schedule
    state = begin_play(world, clip, begin, schedule)
    clean = clip.clean.clone()
    batch, frames = clean.shape[:2]
    for frame in range(begin + 1, frames):
        noise = torch.randn(batch, schedule.noises, *clean.shape[2:], device=clean.device, generator=draw)
        state = tell(world, state, clip.prompt[:, frame])
        latent, state = next_latent(world, state, clip.actions[:, frame, -1], clip.prompt[:, frame], noise, schedule)
        clean[:, frame] = latent.float()
    return clean

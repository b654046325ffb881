"""Train on the world's own roll-outs, so that its errors do not compound (Self Forcing's roll-out, arXiv:2506.08009).

The world plays from recorded starts under recorded keys, with cache and schedule as at play and without gradient.
Then the same frames are made again, all side by side, each from that own history, with gradient at one pass chosen
at random, and compared with the recording, which the keys determine for the first ticks: it learns to lead its own
errors home.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.tick import World, next_latent
from worldmodel.train.preview import begin_play
from worldmodel.transformer.clip import Clip, denoise_clip

ROLL_OUT = 15  # ticks
FADING = 0.9  # weight of each tick relative to the one before: what the recording says binds less and less


def own_loss(world: World, clip: Clip, begin: int, layer: Callable[..., Tensor], draw: torch.Generator) -> Tensor:
    """Weighted x0 error of the world's own frames. The clip's frames up to `begin` are given, ROLL_OUT follow."""
    own, noises = play_out(world, clip, begin, draw)
    made = remake(world, own, noises, layer, draw)
    error = (made.float() - clip.clean).square().mean((0, 2, 3, 4))[begin + 1 :]
    weight = FADING ** torch.arange(len(error), device=error.device)
    return (error * weight).sum() / weight.sum()


@torch.no_grad()
def play_out(world: World, clip: Clip, begin: int, draw: torch.Generator) -> tuple[Clip, Tensor]:
    """Play the clip's keys from its first 1 + begin frames.

    Returns the clip with its later frames replaced by the world's own, and the noise that made them,
    [batch, frames, noises, channels, rows, columns] (zero where frames are recorded).
    """
    schedule = world.spec.schedule
    state = begin_play(world, clip, begin, schedule)
    clean = clip.clean.clone()
    batch, frames = clean.shape[:2]
    noises = clean.new_zeros(batch, frames, schedule.noises, *clean.shape[2:])
    noises[:, begin + 1 :] = torch.randn(noises[:, begin + 1 :].shape, device=clean.device, generator=draw)
    for frame in range(begin + 1, frames):
        latent, state = next_latent(
            world, state, clip.actions[:, frame, -1], clip.prompt[:, frame], noises[:, frame], schedule
        )
        clean[:, frame] = latent.float()
    return Clip(clean, clip.clean_sigma, clip.actions, clip.prompt, clip.prompt), noises


def remake(world: World, own: Clip, noises: Tensor, layer: Callable[..., Tensor], draw: torch.Generator) -> Tensor:
    """The world's frames once more, in parallel, stopping at a pass chosen at random, which alone has gradient."""
    schedule = world.spec.schedule
    stop = int(torch.randint(schedule.passes, (1,), device=draw.device, generator=draw))
    noisy = noises[:, :, 0]
    for p in range(stop + 1):
        sigma = torch.full(noisy.shape[:2], schedule.sigmas[p][0], device=noisy.device)
        with torch.set_grad_enabled(p == stop):
            clean = denoise_clip(world.generator, own, noisy, sigma, None, world.spec.window, layer)
        if p < stop:
            level = schedule.sigmas[p + 1][0]
            noisy = (1 - level) * clean.float() + level * noises[:, :, p + 1]
    return clean

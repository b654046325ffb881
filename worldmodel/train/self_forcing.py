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


@torch.no_grad()
def play_out(world: World, clip: Clip, begin: int, ticks: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """The clip's latents, of which those after frame `begin` are the world's own, played under the clip's keys; and the
    slow numbers that each frame began from, [batch, frames, numbers].

    ticks: after so many, play begins again from the recorded frame, which stays.
    """
    schedule = world.spec.schedule
    clean = clip.clean.clone()
    batch, frames = clean.shape[:2]
    numbers = world.spec.generator.slow
    slow = torch.randn(batch, frames, numbers, device=clean.device, generator=draw)
    begins = range(begin, frames - 1, ticks + 1)
    states = [begin_play(world, clip, first, schedule) for first in begins]
    state = {name: torch.cat([one[name] for one in states]) for name in states[0]}
    if numbers:
        state["slow"] = torch.randn(len(states) * batch, numbers, device=clean.device, generator=draw)
    for tick in range(1, ticks + 1):
        at = [min(first + tick, frames - 1) for first in begins]  # the last ones may play past the end, for nothing
        action, prompt = (torch.cat([part[:, frame] for frame in at]) for part in (clip.actions[:, :, -1], clip.prompt))
        noise = torch.randn(len(action), schedule.noises, *clean.shape[2:], device=clean.device, generator=draw)
        state = tell(world, state, prompt)
        led = None if clip.led is None else torch.cat([clip.led[:, frame] for frame in at])
        latent, state = next_latent(world, state, action, prompt, noise, schedule, led)
        for first, made in zip(begins, latent.float().chunk(len(begins)), strict=True):
            if first + tick < frames:
                clean[:, first + tick] = made
        if numbers:
            for first, now in zip(begins, state["slow"].chunk(len(begins)), strict=True):
                if first + tick < frames:
                    slow[:, first + tick] = now
    return clean, slow

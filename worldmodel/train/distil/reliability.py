"""Reliability weighting (Stream-R1): DMD whose samples count exp(β · reward) as wholes, and whose places count by how
much the reward hangs on them. One reward model says both: its value, and the size of its gradient.

The reward is the judge's eye: how typical is a frame, beside the recorded ones of its clip, of what was recorded?
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.errors import SpecError
from worldmodel.tick import World
from worldmodel.train.distil.dmd import Matching
from worldmodel.train.distil.reward_forcing import reward_weight
from worldmodel.train.distil.roll_out import Sample
from worldmodel.train.distil.rolling_forcing import as_at_play
from worldmodel.train.distil.setting import Setting
from worldmodel.train.judge.eye import Eye

EVEN = 0.5  # share of every place's weight that does not depend on the reward


class ReliabilityWeight:
    """A weight for every frame and place, [batch, frames, 1, rows, columns]."""

    def __init__(self, world: World, eye: Eye) -> None:
        self.world, self.eye = world, eye

    def __call__(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        latents = sample.made.detach().float().requires_grad_(True)
        with torch.enable_grad(), torch.autocast(latents.device.type, enabled=False):
            reward = typical(self.world, self.eye, latents, sample)
            (gradient,) = torch.autograd.grad(reward.sum(), latents)
        weight = reward_weight(reward.detach()) * saliency(gradient, sample.counts)
        return weight, {"typical": reward.detach().mean()}


def typical(world: World, eye: Eye, latents: Tensor, sample: Sample) -> Tensor:
    """1 minus how far the eye finds the frames that count from the recorded ones of their clip, in spreads of real
    frames, [batch]; at least -1.
    """
    seen, wanted = (
        eye.describe(world.codec.decode(part.flatten(0, 1).float())).unflatten(0, part.shape[:2])
        for part in (latents, sample.recorded)
    )
    apart = (seen - wanted.mean(1, keepdim=True).detach()).square().mean(2).add(1e-6).sqrt()
    mean = (apart * sample.counts).sum(1) / sample.counts.sum(1).clamp(min=1)
    return 2 * torch.exp(-mean / 2) - 1


def saliency(gradient: Tensor, counts: Tensor) -> Tensor:
    """Weights of places [batch, frames, 1, rows, columns] by the gradient's size there, of mean 1 over what counts of
    a clip.
    """
    size = gradient.abs().mean(2, keepdim=True) * counts[:, :, None, None, None]
    places = size.shape[3] * size.shape[4]
    mean = size.sum((1, 2, 3, 4), keepdim=True) / (counts.sum(1).clamp(min=1) * places)[:, None, None, None, None]
    return torch.where(mean > 0, EVEN + (1 - EVEN) * size / mean.clamp(min=1e-12), torch.ones_like(size))


def reliability(setting: Setting) -> Matching:
    """DMD on the student's own frames, where the judge can tell good from bad."""
    if setting.judge is None:
        raise SpecError("reliability wants a judge of the environment: 'worldloop train judge', then --judge FILE")
    eye = setting.judge.eye.to(setting.latents.latents.device)
    return Matching(setting, as_at_play(setting), ReliabilityWeight(setting.student, eye))

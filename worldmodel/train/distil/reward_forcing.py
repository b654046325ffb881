"""Reward Forcing's Re-DMD (arXiv:2512.04678): DMD whose samples count exp(β · reward), so that the student leans
towards what moves as the recording does. The reward is looked at, not differentiated.

The paper's reward is a public video model's score of motion; ours is the judge's optical flow. Its EMA sink is a field
of the world (`sink_keep`), so it is in the roll-outs whenever it is at play.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from worldmodel.codec.small import to_picture
from worldmodel.tick import World
from worldmodel.train.distil.dmd import Matching
from worldmodel.train.distil.roll_out import Sample
from worldmodel.train.distil.rolling_forcing import as_at_play
from worldmodel.train.distil.setting import Setting
from worldmodel.train.judge.hands import flow_strength

BETA = 2.0
STILL = 0.05  # pixels of flow that are added to both: standing still is no infinite mistake


class MotionWeight:
    """exp(β · reward) for each clip, [batch, 1, 1, 1, 1]."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, sample: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        reward = motion_reward(self.world, sample)
        return reward_weight(reward), {"motion": reward.mean()}


def reward_weight(reward: Tensor) -> Tensor:
    """[batch] to [batch, 1, 1, 1, 1]."""
    return torch.exp(BETA * reward).view(-1, 1, 1, 1, 1)


@torch.no_grad()
def motion_reward(world: World, sample: Sample) -> Tensor:
    """How near each clip's motion is to the recording's under the same keys, [batch]: 1 the same, 0 twice or half as
    much, -1 at worst.
    """
    shown = [_flow(world, latents, sample.counts) for latents in (sample.made, sample.recorded)]
    ratio = torch.log2((shown[0] + STILL) / (shown[1] + STILL))
    return (1 - ratio.abs()).clamp(min=-1).to(sample.made.device)


def _flow(world: World, latents: Tensor, counts: Tensor) -> Tensor:
    """Mean length of the optical flow into each clip's frames that count, in pixels, [batch]."""
    pictures = to_picture(world.codec.decode(latents.flatten(0, 1).float())).unflatten(0, latents.shape[:2])
    frames = pictures.cpu().numpy()
    found = [
        np.mean([flow_strength(clip[at - 1], clip[at]) for at in np.flatnonzero(counted)] or [0.0])
        for clip, counted in zip(frames, counts.cpu().numpy(), strict=True)
    ]
    return torch.tensor(np.array(found), dtype=torch.float32)


def reward_forcing(setting: Setting) -> Matching:
    """DMD on the student's own frames, the well-moving ones first."""
    return Matching(setting, as_at_play(setting), MotionWeight(setting.student))

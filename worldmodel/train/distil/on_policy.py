"""On-policy reward tuning in the forward process, as in Astrolabe, KVPO and AFD: the student plays each beginning
several times; what was better than the others is learned, what was worse is moved away from.

Samples are noised anew and denoised, as in ordinary training (no gradient through roll-outs, no likelihoods). One
network stands for two, f₊ = (1 - β)·old + β·f and f₋ = (1 + β)·old - β·f, of which the good samples teach the first and
the bad ones the second, so that f leaves the old one by the covariance of sample and reward, and keeps its spread
(DiffusionNFT's objective, which those build on). A pull back to the teacher keeps it a world.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.codec.small import to_picture
from worldmodel.tick import World
from worldmodel.train.distil.reward_forcing import motion_reward
from worldmodel.train.distil.roll_out import Sample, alone, play_on, stitched
from worldmodel.train.distil.setting import Setting, denoised, noised
from worldmodel.train.judge.hands import AFTER, BEFORE, movements
from worldmodel.train.judge.judge import Judge
from worldmodel.train.latents import Drawn
from worldmodel.train.preview import begin_play

GROUP = 4  # roll-outs from one beginning
TICKS = 16
REUSED = 4  # steps on the same roll-outs
BETA = 1.0
SPREAD = 1e-3  # groups whose rewards lie closer together have no better and worse
PULL = 0.1  # towards the teacher
RATE = 1e-4


def advantage(reward: Tensor) -> Tensor:
    """How much better than its group a roll-out is, in spreads of its group, from -1 to 1. reward: [groups, GROUP].

    Nothing on average, also of skewed rewards: what is left over would draw all samples to their mean.
    """
    apart = reward - reward.mean(1, keepdim=True)
    spreads = (apart / (apart.square().mean(1, keepdim=True).sqrt() + SPREAD)).clamp(-1, 1)
    return (spreads - spreads.mean(1, keepdim=True)) / 2


def forward_loss(made: Tensor, old: Tensor, sample: Tensor, advantage: Tensor, counts: Tensor) -> Tensor:
    """Squared errors of f₊ and f₋ against the sample, weighted by how good it is.

    made, old, sample: [batch, frames, …]; advantage: [batch]; counts: [batch, frames].
    """
    better = (0.5 + 0.5 * advantage)[:, None]
    towards, from_it = (1 - BETA) * old + BETA * made, (1 + BETA) * old - BETA * made
    errors = [(x0 - sample).square().flatten(2).mean(2) for x0 in (towards, from_it)]
    lost = better * errors[0] + (1 - better) * errors[1]
    return (lost * counts).sum() / counts.sum().clamp(min=1)


class OnPolicy:
    """Forward-process tuning by the judge's scores of motion and keys."""

    average = 0.99

    def __init__(self, setting: Setting) -> None:
        # Keys are judged, so nothing else may lead.
        self.setting = replace(setting, latents=setting.latents.with_nobody_leading())
        self.old = copy.deepcopy(setting.student.generator).requires_grad_(False)
        self.beside = nn.ModuleDict({"old": self.old})
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(setting.student.generator.parameters(), RATE, (0.9, 0.98), weight_decay=0.0)
        ]
        self.sample: Sample | None = None
        self.advantage = self.reward = torch.empty(0)

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        if self.sample is None or number % REUSED == 0:
            self._play(draw)
        assert self.sample is not None
        student, teacher, sample = self.setting.student, self.setting.teacher, self.sample
        clean = sample.made
        levels = torch.tensor([row[0] for row in alone(student.spec.schedule).sigmas], device=clean.device)
        sigma = levels[torch.randint(len(levels), clean.shape[:2], device=clean.device, generator=draw)]
        noisy = noised(clean, torch.randn(clean.shape, device=clean.device, generator=draw), sigma)
        window, layer = student.spec.window, self.setting.layer
        made = denoised(student.generator, sample.clip, noisy, sigma, window, layer)
        with torch.no_grad():
            old = denoised(self.old, sample.clip, noisy, sigma, window, layer)
            home = denoised(teacher.generator, sample.clip, noisy, sigma, teacher.spec.window, layer)
        tuned = forward_loss(made, old, clean, self.advantage, sample.counts)
        away = (made - home).square().flatten(2).mean(2)
        pulled = (away * sample.counts).sum() / sample.counts.sum().clamp(min=1)
        loss = tuned + PULL * pulled
        loss.backward()
        return {"loss": loss.detach(), "away": pulled.detach(), "reward": self.reward.mean()}

    @torch.no_grad()
    def _play(self, draw: torch.Generator) -> None:
        student, begin = self.setting.student, self.setting.begin
        self.old.load_state_dict(student.generator.state_dict())
        drawn = repeated(self.setting.clips(1 + begin + TICKS, draw, max(self.setting.batch // GROUP, 1)), GROUP)
        schedule = alone(student.spec.schedule)
        state = begin_play(student, drawn.clip, begin, schedule)
        frames = range(1 + begin, 1 + begin + TICKS)
        made, _ = play_on(student, drawn.clip, state, frames, schedule, schedule.passes - 1, draw)
        self.sample = stitched(drawn, drawn.clip, 1 + begin, made)
        self.reward = motion_reward(student, self.sample)
        if self.setting.judge is not None:
            self.reward = self.reward + key_reward(student, self.setting.judge, self.sample)
        self.advantage = advantage(self.reward.view(-1, GROUP)).flatten()


@torch.no_grad()
def key_reward(world: World, judge: Judge, sample: Sample) -> Tensor:
    """From -1 to 1, how rightly the judge's hands tell each clip's keys from its frames, [batch]: 0 by guessing."""
    first = int(sample.counts.any(0).nonzero()[0, 0])
    begins = max(first - BEFORE - 1, 1)
    pictures = to_picture(world.codec.decode(sample.made.flatten(0, 1).float())).cpu().numpy()
    clips = pictures.reshape(*sample.made.shape[:2], *pictures.shape[1:])[:, begins:]
    told = judge.held(np.stack([movements(judge.adapter, list(clip)) for clip in clips], 1))  # [ticks, batch, keys]
    told_first = begins + 1 + BEFORE  # the frame that the first of them led to
    pressed = sample.clip.actions[:, told_first : sample.made.shape[1] - AFTER, -1, : len(judge.actions)]
    held = pressed.cpu().numpy() > 0.5
    right = (told.swapaxes(0, 1)[:, : held.shape[1]] == held).mean((1, 2))
    return torch.from_numpy(2 * right - 1).float().to(sample.made.device)


def repeated(drawn: Drawn, times: int) -> Drawn:
    """Each clip so many times in a row."""
    rest = {name: part.repeat_interleave(times, 0) for name, part in vars(drawn).items() if name != "clip"}
    return Drawn(clip=drawn.clip.repeated(times), **rest)

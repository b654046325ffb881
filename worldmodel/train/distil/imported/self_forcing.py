"""Self Forcing: DMD with a frozen teacher and a critic that learns along, on roll-outs with cache and schedule as at
play (arXiv:2506.08009). Only prompts are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.schedule.sampler import Stream
from worldmodel.train.distil.dmd import Alternating
from worldmodel.train.distil.imported.roll_out import Played, Sample, Sampler
from worldmodel.train.distil.imported.scores import denoised, reader
from worldmodel.train.distil.imported.setting import GUIDANCE, Setting
from worldmodel.train.distil.matching import critic_loss, direction, draw_sigma, matching_loss

CRITIC_SHARE = 0.2  # of the student's learning rate, as published


class Matching(Alternating[Sample]):
    """DMD on whatever `sampler` gives. All clips of a step are judged at one noise level."""

    def __init__(self, setting: Setting, sampler: Sampler) -> None:
        self.setting = setting
        spec = setting.teacher.spec
        guidance = None if spec.guidance is None else GUIDANCE  # a few-step teacher has taken it in already
        self.teacher = reader(spec, setting.teacher.transformer, setting.frames, guidance)
        self.critic = reader(spec, setting.critic, setting.frames)
        rates = setting.rate, CRITIC_SHARE * setting.rate
        super().__init__(setting.trained, setting.learned, rates, sampler)

    def student_loss(self, sample: Sample, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            noisy, sigma = noised(sample, draw)
            real, fake = (self.told(stream, sample, noisy, sigma) for stream in (self.teacher, self.critic))
            away = direction(sample.made, real, fake, sample.counts)
        loss = matching_loss(sample.made, away, sample.counts)
        apart = (away.abs().mean((2, 3, 4)) * sample.counts).sum() / sample.counts.sum()
        return loss, {"loss": loss.detach(), "apart": apart}

    def critic_loss(self, sample: Sample, draw: torch.Generator) -> Tensor:
        noisy, sigma = noised(sample, draw)
        made = self.told(self.critic, sample, noisy, sigma)
        return critic_loss(made, sample.made, torch.full_like(made[:, 0, 0, 0, 0], sigma), sample.counts)

    def told(self, stream: Stream, sample: Sample, noisy: Tensor, sigma: float) -> Tensor:
        """What a network takes noised samples for."""
        return denoised(stream, sample.made.detach(), noisy, sigma, sample.prompt, self.setting.prompts.blank)


def noised(sample: Sample, draw: torch.Generator) -> tuple[Tensor, float]:
    """The samples with noise of one level, drawn by the published law."""
    made, sigma = sample.made.detach(), float(draw_sigma(1, draw))
    return (1 - sigma) * made + sigma * torch.randn(made.shape, device=made.device, generator=draw), sigma


def self_forcing(setting: Setting) -> Matching:
    """DMD on the student's own blocks, one by one."""
    return Matching(setting, Played(setting))

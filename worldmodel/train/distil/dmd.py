"""DMD with a frozen teacher and a critic that learns along (arXiv:2405.14867; as in Self Forcing, arXiv:2506.08009).

The scores are those of one frame given the clean frames before it, so that the sum over a clip's frames is the
divergence of whole clips. Both worlds denoise the same noisy samples with the sample's own past as history. Native
worlds are trained without dropped prompts, so there is no guidance: the teacher's score is its conditional one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from worldmodel.train.distil.matching import critic_loss, direction, draw_sigma, matching_loss
from worldmodel.train.distil.roll_out import Sample, Sampler, stitched
from worldmodel.train.distil.setting import Setting, denoised, noised
from worldmodel.train.world import SETTLING

CRITIC_STEPS = 5  # of the critic for one of the student
RATE, CRITIC_RATE = 1e-4, 2e-4  # a critic as small as these, on data as varied, must be quicker than large ones
BETAS = (0.0, 0.999)
AVERAGE = 0.99  # of the student, per step of its own

Samples = TypeVar("Samples")  # what a sampler gives
Weigh = Callable[[Sample], tuple[Tensor, dict[str, Tensor]]]  # weight of every number of the samples; figures


class Alternating(Generic[Samples]):
    """The critic learns at every step, the student at every CRITIC_STEPS-th, each from samples of its own."""

    average = AVERAGE ** (1 / CRITIC_STEPS)

    def __init__(
        self, student: nn.Module, critic: nn.Module, rates: tuple[float, float], sampler: Callable[..., Samples]
    ) -> None:
        """student, critic: what of them is trained; rates: of each."""
        self.sampler = sampler
        self.beside = nn.ModuleDict({"critic": critic})
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(part.parameters(), rate, BETAS, weight_decay=0.01)
            for part, rate in zip((student, critic), rates, strict=True)
        ]

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        figures: dict[str, Tensor] = {}
        if number % CRITIC_STEPS == 0:
            loss, figures = self.student_loss(self.sampler(draw), draw)
            loss.backward()
        with torch.no_grad():
            sample = self.sampler(draw)
        lost = self.critic_loss(sample, draw)
        lost.backward()
        return figures | {"critic": lost.detach()}

    def student_loss(self, sample: Samples, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and how far critic and teacher are apart in units of the teacher's distance to the samples."""
        raise NotImplementedError

    def critic_loss(self, sample: Samples, draw: torch.Generator) -> Tensor:
        """How badly the critic denoises what the student makes."""
        raise NotImplementedError


class Matching(Alternating[Sample]):
    """DMD on whatever `sampler` gives; `weigh`: see reward_forcing.py."""

    def __init__(self, setting: Setting, sampler: Sampler, weigh: Weigh | None = None) -> None:
        self.setting, self.weigh = setting, weigh
        self.critic = copy.deepcopy(setting.teacher.generator).requires_grad_(True)
        super().__init__(setting.student.generator, self.critic, (RATE, CRITIC_RATE), sampler)

    def student_loss(self, sample: Sample, draw: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            noisy, sigma = self._noisy(sample, draw)
            real, fake = (
                denoised(net, sample.clip, noisy, sigma, self.setting.teacher.spec.window, self.setting.layer)
                for net in (self.setting.teacher.generator, self.critic)
            )
            away = direction(sample.made.float(), real, fake, sample.counts)
            weight, figures = self.weigh(sample) if self.weigh else (torch.ones((), device=away.device), {})
        loss = matching_loss(sample.made, away, sample.counts, weight)
        apart = (away.abs().mean((2, 3, 4)) * sample.counts).sum() / sample.counts.sum().clamp(min=1)
        return loss, {"loss": loss.detach(), "apart": apart, **figures}

    def critic_loss(self, sample: Sample, draw: torch.Generator) -> Tensor:
        noisy, sigma = self._noisy(sample, draw)
        window = self.setting.teacher.spec.window
        made = denoised(self.critic, sample.clip, noisy, sigma, window, self.setting.layer)
        return critic_loss(made, sample.made, sigma[:, 0], sample.counts)

    def _noisy(self, sample: Sample, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        made = sample.made.detach()
        sigma = draw_sigma(len(made), draw)[:, None].expand(-1, made.shape[1])
        return noised(made, torch.randn(made.shape, device=made.device, generator=draw), sigma), sigma


class Recorded:
    """No roll-outs: single frames, each made in one pass from the recorded frames before it."""

    frames = 20

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, draw: torch.Generator) -> Sample:
        world = self.setting.student
        drawn = self.setting.clips(self.frames, draw)
        clean = drawn.clip.clean
        levels = torch.tensor([row[0] for row in world.spec.schedule.sigmas], device=clean.device)
        if world.spec.schedule.frames > 1:
            levels = torch.ones(1, device=clean.device)
        at = torch.randint(len(levels), (), device=clean.device, generator=draw)
        sigma = levels[at].expand(clean.shape[:2])
        noise = torch.randn(clean.shape, device=clean.device, generator=draw)
        made = denoised(
            world.generator, drawn.clip, noised(clean, noise, sigma), sigma, world.spec.window, self.setting.layer
        )
        sample = stitched(drawn, drawn.clip, 1 + SETTLING, made[:, 1 + SETTLING :])
        return replace(sample, clip=drawn.clip)


def dmd(setting: Setting) -> Matching:
    """DMD from recorded histories."""
    return Matching(setting, Recorded(setting))

"""Causal consistency distillation (Causal Forcing++, github.com/thu-ml/Causal-Forcing): neighbouring points of the
teacher's flow shall lead the student to one picture, so that one jump does for the whole way.

From a noised recorded frame the teacher takes one Euler step, knowing the recorded past; the student's jump from where
it started is drawn to the jump of its own average from where it came. No trajectory is kept or walked to its end.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from worldmodel.train.distil.flow import GRID, Denoise, euler, grid
from worldmodel.train.distil.setting import Setting, denoised, noised
from worldmodel.train.optimisers import optimisers
from worldmodel.train.world import Lesson

FRAMES = 20  # of a clip
AVERAGE = 0.99  # of the student that its jumps are drawn to
RATE = 0.1  # in units of optimisers.py


def consistency_loss(
    student: Denoise, average: Denoise, teacher: Denoise, clean: Tensor, noise: Tensor, at: Tensor, counts: Tensor
) -> Tensor:
    """Squared difference of two jumps, [batch, frames, …] each, of frames at grid points `at` [batch, frames], 0 pure
    noise. Where the step arrives at noise level 0, the point itself is where to jump.
    """
    levels = grid().to(clean.device)
    sigma, following = levels[at], levels[at + 1]
    noisy = noised(clean, noise, sigma)
    with torch.no_grad():
        there = euler(noisy, teacher(noisy, sigma), sigma, following)
        ends = (following == 0).view(*at.shape, *[1] * (clean.dim() - 2))
        target = torch.where(ends, there, average(there, following))
    error = (student(noisy, sigma) - target).square().flatten(2).mean(2)
    return (error * counts).sum() / counts.sum().clamp(min=1)


class Consistency:
    """Causal consistency distillation on recorded clips."""

    average = AVERAGE

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        average = copy.deepcopy(setting.student.generator).requires_grad_(False)
        self.beside = nn.ModuleDict({"average": average})
        self.slow = average
        self.optimisers = optimisers(setting.student.generator, RATE)

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        student, teacher = self.setting.student, self.setting.teacher
        pairs = zip(self.slow.parameters(), student.generator.parameters(), strict=True)
        with torch.no_grad():
            for slow, now in pairs:
                slow.lerp_(now, 1 - AVERAGE)
        drawn = self.setting.clips(FRAMES, draw)
        clean = drawn.clip.clean

        def of(net: nn.Module, window: int) -> Denoise:
            return lambda noisy, sigma: denoised(net, drawn.clip, noisy, sigma, window, self.setting.layer)  # type: ignore[arg-type]

        loss = consistency_loss(
            of(student.generator, student.spec.window),
            of(self.slow, student.spec.window),
            of(teacher.generator, teacher.spec.window),
            clean,
            torch.randn(clean.shape, device=clean.device, generator=draw),
            torch.randint(GRID, clean.shape[:2], device=clean.device, generator=draw),
            Lesson(drawn).counts,
        )
        loss.backward()
        return {"loss": loss.detach()}

"""Causal ODE initialisation (Causal Forcing, github.com/thu-ml/Causal-Forcing): the student jumps where the teacher's
flow leads in many steps, from every level of its own schedule.

The teacher is causal itself and sees the recorded past, so that what the student is asked for can be known at play.
Trajectories are made as needed and used for several steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.train.distil.flow import along, grid
from worldmodel.train.distil.roll_out import alone
from worldmodel.train.distil.setting import Setting, denoised
from worldmodel.train.latents import Drawn
from worldmodel.train.optimisers import optimisers
from worldmodel.train.world import Lesson

FRAMES = 20  # of a clip
STEPS = 16  # of the teacher; the student's levels come on top
REUSED = 8  # steps on the same trajectories
RATE = 0.1  # in units of optimisers.py


def with_levels(levels: Tensor, wanted: tuple[float, ...]) -> Tensor:
    """Falling levels, these among them."""
    return torch.cat([levels, torch.tensor(wanted)]).unique().flip(0)


def ode_loss(made: Tensor, end: Tensor, counts: Tensor) -> Tensor:
    """Squared error of where the student jumps to from where the flow ends. made, end: [batch, frames, …]."""
    error = (made - end).square().flatten(2).mean(2)
    return (error * counts).sum() / counts.sum().clamp(min=1)


class OdeInitialisation:
    """Regression onto the ends of the teacher's flow."""

    average = 0.99

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.beside = nn.ModuleDict()
        self.optimisers = optimisers(setting.student.generator, RATE)
        own = tuple(row[0] for row in alone(setting.student.spec.schedule).sigmas)
        self.levels = with_levels(grid(STEPS), own)
        self.own = torch.tensor([int((self.levels == level).nonzero()[0, 0]) for level in torch.tensor(own)])
        self.drawn: Drawn | None = None
        self.points = torch.empty(0)

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        if self.drawn is None or number % REUSED == 0:
            self._flow(draw)
        assert self.drawn is not None
        clip, world = self.drawn.clip, self.setting.student
        batch, frames = clip.clean.shape[:2]
        which = self.own.to(clip.clean.device)
        at = which[torch.randint(len(which), (batch, frames), device=clip.clean.device, generator=draw)]
        rows, columns = torch.meshgrid(
            torch.arange(batch, device=at.device), torch.arange(frames, device=at.device), indexing="ij"
        )
        noisy, sigma = self.points[at, rows, columns], self.levels.to(at.device)[at]
        made = denoised(world.generator, clip, noisy, sigma, world.spec.window, self.setting.layer)
        loss = ode_loss(made, self.points[-1], Lesson(self.drawn).counts)
        loss.backward()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def _flow(self, draw: torch.Generator) -> None:
        teacher = self.setting.teacher
        self.drawn = self.setting.clips(FRAMES, draw)
        clip = self.drawn.clip

        def denoise(noisy: Tensor, sigma: Tensor) -> Tensor:
            return denoised(teacher.generator, clip, noisy, sigma, teacher.spec.window, self.setting.layer)

        noise = torch.randn(clip.clean.shape, device=clip.clean.device, generator=draw)
        self.points = along(denoise, noise, self.levels)

"""What every distillation method is given, and what it must do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from worldmodel.tick import World
from worldmodel.train.judge.judge import Judge
from worldmodel.train.latents import Drawn, LatentSet
from worldmodel.transformer.clip import Clip, denoise_clip
from worldmodel.transformer.generator import Generator, first_noise


@dataclass(frozen=True)
class Setting:
    """student: the world to be trained; of the other one, the teacher, nothing changes
    latents: the recording
    batch: clips per step
    layer: `clip_layer` or a compiled form of it
    judge: of the environment, where there is one
    """

    student: World
    teacher: World
    latents: LatentSet
    batch: int
    layer: Callable[..., Tensor]
    judge: Judge | None = None

    @property
    def begin(self) -> int:
        """The recorded frame after which a roll-out begins: both worlds' windows are full there."""
        return max(self.student.spec.window, self.teacher.spec.window) + 1

    def clips(self, frames: int, draw: torch.Generator, count: int | None = None) -> Drawn:
        """Recorded clips of so many frames, the sink included."""
        starts = self.latents.starts(frames - 1)
        chosen = torch.randint(len(starts), (count or self.batch,), device=starts.device, generator=draw)
        return self.latents.clips(self.student.spec, starts[chosen], frames, draw)


class Method(Protocol):
    """A way to train a student. Made anew for every run; what changes in it lies in `beside` and the optimisers."""

    beside: nn.ModuleDict  # what is trained or averaged along with the student; kept for --resume
    optimisers: list[torch.optim.Optimizer]
    average: float  # decay of the averaged student per step

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Leave gradients of one step behind; returns figures to be logged."""


def denoised(
    generator: Generator, clip: Clip, noisy: Tensor, sigma: Tensor, window: int, layer: Callable[..., Tensor]
) -> Tensor:
    """x0 of every frame from its own clean history, float32. noisy: like clip.clean. sigma: [batch, frames].

    Pure noise is shown as it is at play: a few numbers, the same at every place.
    """
    level = sigma[:, :, None, None, None]
    shown = torch.where(level < 1, noisy, first_noise(noisy))
    return denoise_clip(generator, clip, shown, sigma, None, window, layer).float()


def noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """(1 - sigma) · clean + sigma · noise. sigma: [batch, frames]."""
    level = sigma[:, :, None, None, None]
    return (1 - level) * clean + level * noise

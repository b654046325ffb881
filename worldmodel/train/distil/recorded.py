"""Learning from recorded histories alone, as `worldloop train world` does without its own errors and roll-outs: what
the methods that use a teacher are compared with, and a plain way to make a first teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.train.distil.setting import Setting
from worldmodel.train.optimisers import optimisers
from worldmodel.train.world import CLIP_FRAMES, RATE, Lesson, draw_tiles
from worldmodel.transformer.clip import Clip


class Exact(Lesson):
    """Clips whose history is as recorded."""

    def _history(self, draw: torch.Generator) -> Clip:
        return self.clip


class FromRecording:
    """Energy score and squared error of diffusion forcing, on clips that are used once."""

    average = 0.999

    def __init__(self, setting: Setting, lesson: type[Lesson]) -> None:
        self.setting, self.lesson = setting, lesson
        self.beside = nn.ModuleDict()
        self.optimisers = optimisers(setting.student.generator, RATE)

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        lesson = self.lesson(self.setting.clips(CLIP_FRAMES, draw))
        batch, frames = lesson.counts.shape
        sigma, tile_start = draw_tiles(batch, frames, draw)
        figures = lesson.loss(self.setting.student, sigma, tile_start, self.setting.layer, draw)
        figures["loss"].backward()
        return {name: figure.detach() for name, figure in figures.items()}


def teacher_forcing(setting: Setting) -> FromRecording:
    """Histories as recorded."""
    return FromRecording(setting, Exact)


def noisy_history(setting: Setting) -> FromRecording:
    """Histories with noise, smooth lasting errors and half-understood prompts."""
    return FromRecording(setting, Lesson)

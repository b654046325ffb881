"""What a method for imported checkpoints is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from worldmodel.families.wan_transformer import WanTransformer
from worldmodel.families.wan_world import WanWorld
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import Schedule
from worldmodel.schedule.sampler import Stream
from worldmodel.train.distil.imported.prompts import Prompts

GUIDANCE = 3.0  # added to a many-step teacher's conditional x0, times its distance to the unconditional one


@dataclass(frozen=True)
class Setting:
    """student: the world to be trained, on its own schedule and cache; of the other one, the teacher, nothing changes
    trained: the student's weights that are: all of its transformer, or its adapters
    critic: a transformer of the teacher's kind, and `learned`, what of it is trained
    frames: latent frames of a clip that is judged
    batch: roll-outs per step and process
    rate: the student's learning rate
    """

    student: WanWorld
    trained: nn.Module
    teacher: WanWorld
    critic: WanTransformer
    learned: nn.Module
    prompts: Prompts
    frames: int
    batch: int
    rate: float

    def play(self, schedule: Schedule | None = None) -> Stream:
        """The student's stream, made anew: weights that have changed leave nothing behind."""
        return replace(self.student.stream, schedule=schedule or self.student.spec.schedule, _levels={})

    def noise(self, frames: int, draw: torch.Generator) -> Tensor:
        """[batch, frames, channels, rows, columns], in the precision of the student's weights."""
        spec = self.student.spec
        shape = (self.batch, frames, spec.transformer.out_channels, spec.rows, spec.columns)
        like = self.student.transformer.head.modulation
        return torch.randn(shape, device=like.device, generator=draw).to(like.dtype)


def alone(schedule: Schedule) -> Schedule:
    """The schedule that takes one block alone through all levels that a block meets on its way."""
    steady = schedule.plan(schedule.steady_from)
    if steady.lanes == 1:
        return schedule
    way = [row[lane] for lane in range(steady.lanes - 1, -1, -1) for row in steady.rows if lane < len(row)]
    return FewStep(tuple(way), renoise=schedule.renoise)

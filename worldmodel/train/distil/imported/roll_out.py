"""A student's own blocks, with the gradient of the pass that made each, on its own history as at play (Self Forcing,
arXiv:2506.08009).

Cache, sink and levels are those of play. Blocks are left at a pass drawn at random, the same one for all blocks of a
roll-out; what the student then takes for the clean block is the sample, and its history. Gradient flows through that
pass alone, and through the prompt's keys and values in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from worldmodel.cache.base import State
from worldmodel.schedule.plan import Level, Plan
from worldmodel.schedule.sampler import Stream
from worldmodel.train.distil.imported.setting import Setting, alone


@dataclass(frozen=True)
class Sample:
    """made: [batch, frames, channels, rows, columns] float32, with gradient where `counts` is 1
    counts: [batch, frames], 1 where a frame shall be judged
    prompt: [batch, rows, dim], that holds there
    """

    made: Tensor
    counts: Tensor
    prompt: Tensor


class Sampler(Protocol):
    """A kind of roll-out."""

    def __call__(self, draw: torch.Generator) -> Sample:
        """The next samples; without gradient under `torch.no_grad()`."""


class Played:
    """Block by block from the beginning of a stream; of a schedule with blocks in flight the same levels, one block at
    a time.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def __call__(self, draw: torch.Generator) -> Sample:
        stream, prompt = self.setting.play(alone(self.setting.student.spec.schedule)), drawn(self.setting, draw)
        state = begun(stream, prompt)
        made, _ = play_on(self.setting, stream, state, prompt, self.setting.frames, draw)
        return Sample(made, made.new_ones(made.shape[:2]), prompt)


def drawn(setting: Setting, draw: torch.Generator) -> Tensor:
    """Prompts for a batch, in the precision of the student's weights."""
    like = setting.student.transformer.head.modulation
    return setting.prompts.draw(setting.batch, draw).to(like)


@torch.no_grad()
def begun(stream: Stream, prompt: Tensor) -> State:
    """A stream before its first block."""
    return stream.prompted(stream.empty(len(prompt)), prompt)


def play_on(
    setting: Setting, stream: Stream, state: State, prompt: Tensor, frames: int, draw: torch.Generator
) -> tuple[Tensor, State]:
    """Make so many frames, each block left at the same share of its passes; float32, and the state after them."""
    share, made = float(torch.rand((), device=draw.device, generator=draw)), []
    for _ in range(frames // stream.cache.chunk):
        plan = stream.plan(state)
        plan = Plan(plan.rows[: 1 + int(share * plan.passes)])
        noise = setting.noise(stream.noises(plan) * stream.cache.chunk, draw)
        block, state = left(stream, state, prompt, plan, noise)
        made.append(block.float())
    return torch.cat(made, 1), state


def left(stream: Stream, state: State, prompt: Tensor, plan: Plan, noise: Tensor) -> tuple[Tensor, State]:
    """A tick of one block whose last pass has gradient: [batch, chunk, …], and the state, which carries none.

    noise: as `Stream.tick` takes it.
    """
    draws = iter(noise.split(stream.cache.chunk, 1))
    block = next(draws)
    for number, row in enumerate(plan.rows):
        if number + 1 < plan.passes:
            with torch.no_grad():
                flow = stream.velocity(state, block, row)
        else:
            flow = graded(stream, state, prompt, block, row)
        (block,) = stream.advance(plan, number, block, flow, draws)
    return block, settled(stream, state, block)


def graded(stream: Stream, state: State, prompt: Tensor, seen: Tensor, row: tuple[Level, ...]) -> Tensor:
    """Velocities of a pass with all the gradient it can have: that of prompt and noise levels, too."""
    anew = replace(stream, _levels={})
    return anew.velocity(anew.prompted(state, prompt), seen, row)


@torch.no_grad()
def settled(stream: Stream, state: State, block: Tensor) -> State:
    """The state after a finished block."""
    state = stream.append(state, block)
    return {**state, "phase": state["phase"] + 1}

"""A student's own frames, with the gradient of the pass that made each: roll-outs on its own history, as at play (Self
Forcing, arXiv:2506.08009).

Cache, sink, schedule and prompt switches are those of the tick. Ticks are left at a pass drawn at random, the same one
for all ticks of a roll-out; what the student then takes for the clean frame is the sample, and its history. Gradient
flows through that pass alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from worldmodel.schedule.plan import Level, Plan
from worldmodel.schedule.table import ScheduleTable, frame_wise
from worldmodel.tick import State, World, count_noises, walk
from worldmodel.train.distil.setting import Setting
from worldmodel.train.latents import Drawn
from worldmodel.train.preview import begin_play, tell
from worldmodel.transformer.clip import Clip

TICKS = 12  # of a roll-out
CLEAN = Level(0.0, 0.0)


@dataclass(frozen=True)
class Sample:
    """Clips that begin as recorded and go on as the student made them.

    clip: what both scores are told: `clean` is the history of each frame, actions are those that the student was told
    made: [batch, frames, channels, rows, columns], with gradient where counts is 1
    counts: [batch, frames], 1 where a frame shall be judged
    recorded: like made, what the recording shows instead
    """

    clip: Clip
    made: Tensor
    counts: Tensor
    recorded: Tensor


class Sampler(Protocol):
    """A kind of roll-out."""

    def __call__(self, draw: torch.Generator) -> Sample:
        """The next samples; without gradient under `torch.no_grad()`."""


class Played:
    """Frame by frame, `ticks` of them from a recorded beginning.

    schedule: as at play; of one with several frames in flight, the same levels, frame by frame.
    """

    def __init__(self, setting: Setting, ticks: int = TICKS) -> None:
        self.setting, self.ticks = setting, ticks
        self.schedule = alone(setting.student.spec.schedule)

    def __call__(self, draw: torch.Generator) -> Sample:
        world, begin = self.setting.student, self.setting.begin
        drawn = self.setting.clips(1 + begin + self.ticks, draw)
        state = begin_play(world, drawn.clip, begin, self.schedule)
        frames = range(begin + 1, 1 + begin + self.ticks)
        made, _ = play_on(world, drawn.clip, state, frames, self.schedule, any_pass(self.schedule, draw), draw)
        return stitched(drawn, drawn.clip, begin + 1, made)


def play_on(
    world: World, clip: Clip, state: State, frames: range, schedule: ScheduleTable, leave_at: int, draw: torch.Generator
) -> tuple[Tensor, State]:
    """Make these frames of a clip one by one, each left at the same pass: [batch, len(frames), …], and the state."""
    plan, made = schedule.steady, []
    for frame in frames:
        with torch.no_grad():
            state = tell(world, state, clip.prompt[:, frame])
        action = clip.actions[:, frame, -1]
        now, state = left_at(world, state, action, clip.prompt[:, frame], plan, leave_at, draw, clip.led_at(frame))
        made.append(now[:, 0])
    return torch.stack(made, 1), state


def any_pass(schedule: ScheduleTable, draw: torch.Generator) -> int:
    """One of its passes."""
    return int(torch.randint(schedule.passes, (), device=draw.device, generator=draw))


def left_at(
    world: World,
    state: State,
    action: Tensor,
    prompt: Tensor,
    plan: Plan,
    number: int,
    draw: torch.Generator,
    led: Tensor | None = None,
) -> tuple[Tensor, State]:
    """A tick that is left after pass `number`: what it then takes for clean, of all frames in flight [batch, lanes, …],
    and the state in which the first of them has been shown. Gradient is that of the pass; the state carries none.

    The others wait at the levels of the plan, which are theirs only after its last pass.
    """
    row = plan.rows[number]
    lanes = len(row)

    def noise(count: int) -> Tensor:
        shape = (len(action), max(count, 1), *world.spec.latent_shape)
        return torch.randn(shape, device=action.device, generator=draw)

    flight, flying = (state["flight"], plan.flying) if plan.flying else (None, 0)
    if number:
        rows = plan.rows[:number]
        flying = max(len(before) for before in rows)
        first = Plan(rows, row[1:flying], plan.flying)
        with torch.no_grad():
            oldest, between = walk(world, state, action, prompt, noise(count_noises(first)), first, flight, led)
        sigma = row[0].sigma
        again = ((1 - sigma) * oldest + sigma * noise(1)[:, 0]).unsqueeze(1)
        flight = torch.cat([again, between["flight"]], 1) if flying > 1 else again
    last = Plan((row,), (CLEAN,) * (lanes - 1), flying)
    shown, after = walk(world, state, action, prompt, noise(count_noises(last)), last, flight, led)
    made = shown.unsqueeze(1) if lanes == 1 else torch.cat([shown.unsqueeze(1), after["flight"]], 1)
    if lanes > 1:
        waiting = torch.tensor([level.sigma for level in plan.after], device=made.device)[None, :, None, None, None]
        after["flight"] = (1 - waiting) * made[:, 1:] + waiting * noise(lanes - 1)
    return made.float(), {name: value.detach() for name, value in after.items()}


def alone(schedule: ScheduleTable) -> ScheduleTable:
    """The schedule that takes one frame alone through all levels that a frame meets on its way."""
    return frame_wise(*(row[frame] for frame in range(schedule.frames - 1, -1, -1) for row in schedule.sigmas))


def stitched(drawn: Drawn, clip: Clip, first: int, made: Tensor, counts: Tensor | None = None) -> Sample:
    """A sample of which so many frames from `first` on are the student's.

    clip: what was played. counts: [frames made], if not all of them count. A frame whose history has already been told
    a later prompt counts never: at play there is no such thing.
    """
    end = first + made.shape[1]
    joined = torch.cat([clip.clean[:, :first], made, clip.clean[:, end:]], 1)
    known = (~(drawn.renamed[:, None] & (drawn.scene != drawn.scene[:, -1:]))).float()
    counted = torch.zeros_like(known)
    counted[:, first:end] = 1 if counts is None else counts
    return Sample(replace(clip, clean=joined.detach()), joined, counted * known, drawn.target)

"""Streaming long tuning (LongLive, arXiv:2509.22622): every step goes on with the stream where the last one left it, so
that the student learns on states that it reaches after hundreds of ticks only.

What is new in a step is judged, the state carries no gradient. On the way each stream is told another prompt once, with
the recache of play. The teacher sees the newest clip and the prompt that holds there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.errors import DatasetError
from worldmodel.tick import State
from worldmodel.train.distil.dmd import Matching
from worldmodel.train.distil.roll_out import TICKS, Sample, alone, any_pass, play_on
from worldmodel.train.distil.setting import Setting
from worldmodel.train.latents import Drawn
from worldmodel.train.preview import begin_play
from worldmodel.transformer.clip import Clip
from worldmodel.transformer.generator import FRESH

LONGEST = 240  # ticks of a stream


class Streamed:
    """Streams that go on from call to call and begin anew after `longest` ticks."""

    def __init__(self, setting: Setting, longest: int = LONGEST) -> None:
        self.setting, self.schedule = setting, alone(setting.student.spec.schedule)
        self.longest = min(longest, _room(setting))
        self.drawn: Drawn | None = None
        self.clip: Clip | None = None
        self.state: State = {}
        self.at = 0  # ticks played

    def __call__(self, draw: torch.Generator) -> Sample:
        if self.clip is None or self.drawn is None or self.at + TICKS > self.longest:
            self._begin(draw)
        assert self.clip is not None and self.drawn is not None
        begin, clip = self.setting.begin, self.clip
        first = 1 + begin + self.at
        new = range(first, first + TICKS)
        leave_at = any_pass(self.schedule, draw)
        made, self.state = play_on(self.setting.student, clip, self.state, new, self.schedule, leave_at, draw)
        self.clip = replace(clip, clean=torch.cat([clip.clean[:, :first], made.detach(), clip.clean[:, new.stop :]], 1))
        self.at += TICKS
        return self._judged(self.state["latents"][:, :1], first, made)

    def _begin(self, draw: torch.Generator) -> None:
        self.drawn = self.setting.clips(1 + self.setting.begin + self.longest, draw)
        self.clip = switched(self.drawn.clip, self._switch(draw))
        self.state = begin_play(self.setting.student, self.clip, self.setting.begin, self.schedule)
        self.at = 0

    def _switch(self, draw: torch.Generator) -> int:
        """The frame from which another prompt holds: at the beginning of some step but the first."""
        steps = self.longest // TICKS
        step = 1 + int(torch.randint(max(steps - 1, 1), (), device=draw.device, generator=draw))
        return 1 + self.setting.begin + step * TICKS

    def _judged(self, sink: Tensor, first: int, made: Tensor) -> Sample:
        """The newest clip as both scores see it: its sink, the frames right before it, and what is new."""
        assert self.clip is not None and self.drawn is not None
        kept = slice(first - self.setting.begin, first + made.shape[1])
        clip = self.clip.each(lambda part: torch.cat([part[:, :1], part[:, kept]], 1))
        latest = clip.prompt[:, -1:].expand_as(clip.prompt)
        told = clip.fresh[:, -1:].expand_as(clip.fresh)
        clip = replace(
            clip, clean=torch.cat([sink, clip.clean[:, 1:]], 1), prompt=latest, clean_prompt=latest, clean_fresh=told
        )
        joined = torch.cat([clip.clean[:, : -made.shape[1]], made], 1)
        counts = torch.zeros(joined.shape[:2], device=made.device)
        counts[:, -made.shape[1] :] = 1
        target = self.drawn.target
        return Sample(clip, joined, counts, torch.cat([target[:, :1], target[:, kept]], 1))


def switched(clip: Clip, frame: int) -> Clip:
    """The clip under its first prompt, and from `frame` on under another clip's."""
    numbers = torch.arange(clip.prompt.shape[1], device=clip.prompt.device)
    own = clip.prompt[:, :1].expand_as(clip.prompt)
    prompt = torch.where((numbers < frame)[None, :, None, None], own, own.roll(1, 0))
    fresh = ((numbers >= frame) & (numbers < frame + FRESH)).float().expand_as(clip.fresh)
    return replace(clip, prompt=prompt, clean_prompt=prompt, fresh=fresh, clean_fresh=fresh)


def _room(setting: Setting) -> int:
    """Ticks that the recording's longest episodes have room for, a multiple of TICKS."""
    for ticks in range(LONGEST, 0, -TICKS):
        try:
            setting.latents.starts(setting.begin + ticks)
        except DatasetError:
            continue
        return ticks
    raise DatasetError(f"no episode has {setting.begin + TICKS} frames in a row: record longer ones")


def long_tuning(setting: Setting) -> Matching:
    """DMD on streams that go on from step to step."""
    return Matching(setting, Streamed(setting))

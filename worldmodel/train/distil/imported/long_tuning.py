"""Streaming long tuning (LongLive, arXiv:2509.22622): every step goes on with the stream where the last one left it, so
that the student learns on states that it reaches after hundreds of frames only.

What is new in a step is judged, its last block before that seen along with it; the state carries no gradient. On the
way each stream is told another prompt once, with the recache of play, and both scores are told the newest prompt. A
resumed run begins with a new stream.
"""

from __future__ import annotations

import torch

from worldmodel.cache.base import State
from worldmodel.errors import SpecError
from worldmodel.train.distil.imported.roll_out import Sample, begun, drawn, play_on
from worldmodel.train.distil.imported.self_forcing import Matching
from worldmodel.train.distil.imported.setting import Setting, alone

LONGEST = 240  # latent frames of a stream


class Streamed:
    """Streams that go on from call to call and begin anew after `longest` frames."""

    def __init__(self, setting: Setting, longest: int = LONGEST) -> None:
        self.setting, self.schedule = setting, alone(setting.student.spec.schedule)
        self.overlap = setting.student.spec.cache.chunk
        if setting.frames <= self.overlap:
            raise SpecError(
                f"--frames {setting.frames}: a clip is longer than the block of {self.overlap} that it begins with"
            )
        self.clips = 1 + (longest - setting.frames) // (setting.frames - self.overlap)  # of a stream
        self.state: State = {}
        self.at = self.turns_at = 0  # clips made; the clip before which the prompt changes
        self.prompt = self.latest = torch.empty(0)

    def __call__(self, draw: torch.Generator) -> Sample:
        setting, stream = self.setting, self.setting.play(self.schedule)
        if not self.state or self.at >= self.clips:
            self.prompt = drawn(setting, draw)
            self.state, self.at = begun(stream, self.prompt), 0
            self.turns_at = 1 + int(torch.randint(max(self.clips - 1, 1), (), device=draw.device, generator=draw))
        elif self.at == self.turns_at:
            self.prompt = drawn(setting, draw)
            with torch.no_grad():
                keep = setting.student.spec.keep_sink
                self.state = stream.recache(self.state, self.prompt, keep_sink=keep)
        known = self.overlap if self.at else 0
        made, self.state = play_on(setting, stream, self.state, self.prompt, setting.frames - known, draw)
        clip = torch.cat([self.latest, made], 1) if known else made
        counts = torch.ones(clip.shape[:2], device=clip.device)
        counts[:, :known] = 0
        self.latest, self.at = made[:, -self.overlap :].detach(), self.at + 1
        return Sample(clip, counts, self.prompt)


def long_tuning(setting: Setting) -> Matching:
    """DMD on streams that go on from step to step."""
    return Matching(setting, Streamed(setting))

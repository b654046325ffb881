"""Rolling Forcing: DMD on blocks as they are taken for clean while they are in flight (arXiv:2509.25161).

Of k blocks in flight every k-th window has gradient. Such windows lie side by side, so that each block of the clip is
judged once, at the level that it has there. Half of the roll-outs go block by block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.errors import SpecError
from worldmodel.train.distil.imported.roll_out import Played, Sample, begun, drawn, graded, settled
from worldmodel.train.distil.imported.self_forcing import Matching
from worldmodel.train.distil.imported.setting import Setting


class Rolled:
    """Windows in flight from the beginning of a stream, until every block of the clip has been judged."""

    def __init__(self, setting: Setting) -> None:
        self.setting, stream = setting, setting.play()
        self.lanes, self.chunk = stream.lanes, stream.cache.chunk
        if self.lanes == 1:
            raise SpecError(f"{setting.student.spec.title} has one block in flight, nothing rolls: use self-forcing")

    def __call__(self, draw: torch.Generator) -> Sample:
        stream, prompt = self.setting.play(), drawn(self.setting, draw)
        chosen = int(torch.randint(self.lanes, (), device=draw.device, generator=draw))
        blocks = self.setting.frames // self.chunk
        state, made = begun(stream, prompt), dict[int, Tensor]()
        flight: list[Tensor] = []
        window = oldest = 0  # passes so far; the number of the block in lane 0
        while not all(block in made for block in range(blocks)):
            plan = stream.plan(state)
            draws = iter(self.setting.noise(stream.noises(plan) * self.chunk, draw).split(self.chunk, 1))
            for number, row in enumerate(plan.rows):
                flight += [next(draws) for _ in range(len(flight), len(row))]
                seen = torch.cat(flight, 1)
                if window % self.lanes == chosen:
                    flow = graded(stream, state, prompt, seen, row)
                    sigma = torch.tensor([level.sigma for level in row], device=seen.device)
                    sigma = sigma.repeat_interleave(self.chunk)[None, :, None, None, None]
                    made |= dict(enumerate((seen.float() - sigma * flow.float()).split(self.chunk, 1), oldest))
                else:
                    with torch.no_grad():
                        flow = stream.velocity(state, seen, row)
                with torch.no_grad():
                    flight = stream.advance(plan, number, seen, flow, draws)
                window += 1
            state, oldest = settled(stream, state, flight.pop(0)), oldest + 1
        clip = torch.cat([made[block] for block in range(blocks)], 1)
        return Sample(clip, clip.new_ones(clip.shape[:2]), prompt)


class HalfRolled:
    """Windows in flight, or one block at a time."""

    def __init__(self, setting: Setting) -> None:
        self.kinds = Rolled(setting), Played(setting)

    def __call__(self, draw: torch.Generator) -> Sample:
        return self.kinds[int(torch.randint(2, (), device=draw.device, generator=draw))](draw)


def rolling_forcing(setting: Setting) -> Matching:
    """DMD on windows in flight and on single blocks, half and half."""
    return Matching(setting, HalfRolled(setting))

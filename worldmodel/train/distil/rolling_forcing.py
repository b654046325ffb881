"""Rolling Forcing (arXiv:2509.25161): DMD on roll-outs whose window of frames in flight rolls as at play.

Every so many ticks as there are frames in flight, what the student takes for clean in the window is the sample, with
gradient: those windows lie side by side, so that each frame is judged once, at the noise level of its place. Half of
the roll-outs go frame by frame over the same levels, so that the world can be played that way, too.

Keys change while frames are in flight, which are told the newest one, as at play, and the scores are told what the
frames were. Now and then a tick drops the frames in flight and makes the window anew (rollback), so that partial
windows are known, too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldmodel.errors import SpecError
from worldmodel.train.distil.dmd import Matching
from worldmodel.train.distil.roll_out import Played, Sample, Sampler, left_at, stitched
from worldmodel.train.distil.setting import Setting
from worldmodel.train.preview import begin_play, tell

WINDOWS = 3  # with gradient, in a roll-out
ROLLBACK = 0.2  # share of ticks


class Rolled:
    """Roll-outs of WINDOWS whole windows and what is shown before the first of them."""

    def __init__(self, setting: Setting, windows: int = WINDOWS) -> None:
        self.setting, self.windows = setting, windows
        if setting.student.spec.schedule.frames < 2:
            raise SpecError(
                "rolling-forcing wants several frames in flight, as --set schedule.sigmas='((0.25,0.5,0.75,1),)': "
                f"got {setting.student.spec.schedule.sigmas}"
            )

    def __call__(self, draw: torch.Generator) -> Sample:
        world, begin, schedule = self.setting.student, self.setting.begin, self.setting.student.spec.schedule
        flying = schedule.frames
        early = int(torch.randint(flying, (), device=draw.device, generator=draw))
        frames = early + self.windows * flying  # made in all
        drawn = self.setting.clips(begin + (self.windows + 1) * flying, draw)  # as long, however early
        clip = drawn.clip
        actions, prompts, fresh = clip.actions.clone(), clip.prompt.clone(), clip.fresh.clone()
        led = None if clip.led is None else clip.led.clone()
        state = begin_play(world, clip, begin, schedule)
        made: list[Tensor] = []
        for tick in range(frames - flying + 1):
            frame = begin + 1 + tick
            with torch.no_grad():
                state = tell(world, state, clip.prompt[:, frame])
            rolls_back = tick == 0 or float(torch.rand((), device=draw.device, generator=draw)) < ROLLBACK
            plan = schedule.reprime if rolls_back else schedule.steady
            counted = tick >= early and (tick - early) % flying == 0
            with torch.set_grad_enabled(counted and torch.is_grad_enabled()):
                action, prompt = clip.actions[:, frame, -1], clip.prompt[:, frame]
                window, state = left_at(world, state, action, prompt, plan, plan.passes - 1, draw, clip.led_at(frame))
            if counted:
                made += window.unbind(1)
                window_frames = slice(frame, frame + flying)
                actions[:, window_frames] = held(clip.actions[:, frame], flying)
                if led is not None and clip.led is not None:
                    led[:, window_frames] = clip.led[:, frame, None]
                prompts[:, window_frames], fresh[:, window_frames] = prompt.unsqueeze(1), clip.fresh[:, frame, None]
            elif tick < early:
                made.append(window[:, 0])
        counts = (torch.arange(frames, device=actions.device) >= early).float()
        played = replace(clip, actions=actions, prompt=prompts, fresh=fresh, led=led)
        return stitched(drawn, played, begin + 1, torch.stack(made, 1), counts)


class HalfRolled:
    """By turns of a coin, roll-outs with frames in flight and frame by frame."""

    def __init__(self, setting: Setting) -> None:
        self.rolled, self.played = Rolled(setting), Played(setting)

    def __call__(self, draw: torch.Generator) -> Sample:
        rolls = float(torch.rand((), device=draw.device, generator=draw)) < 0.5
        return self.rolled(draw) if rolls else self.played(draw)


def as_at_play(setting: Setting) -> Sampler:
    """Roll-outs of a world's own kind: half of them with frames in flight where its schedule has such."""
    return HalfRolled(setting) if setting.student.spec.schedule.frames > 1 else Played(setting)


def held(history: Tensor, frames: int) -> Tensor:
    """What frames in flight are told while the newest action of `history` [batch, history, action_dim] is held:
    [batch, frames, history, action_dim].
    """
    longer = torch.cat([history, history[:, -1:].expand(-1, frames - 1, -1)], 1)
    return longer.unfold(1, history.shape[1], 1).transpose(2, 3)


def rolling_forcing(setting: Setting) -> Matching:
    """DMD on windows in flight, half of the roll-outs frame by frame."""
    return Matching(setting, HalfRolled(setting))

"""Look at a generator while it trains: next-frame figures and a strip of a free roll-out beside the recording."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from worldmodel.codec.small import to_picture
from worldmodel.schedule.table import ScheduleTable
from worldmodel.tick import State, World, next_latent, recache, start
from worldmodel.train.codec import psnr
from worldmodel.train.latents import LatentSet
from worldmodel.train.pictures import save_strip
from worldmodel.transformer.clip import Clip

SHOWN = (1, 2, 5, 10, 20, 30, 50, 75)  # ticks on a strip
PLAYERS = 8  # on the strip
FIGURES = 24  # that the figures are taken from


@torch.no_grad()
def preview(world: World, latents: LatentSet, path: Path) -> dict[str, float]:
    """Roll recorded keys out freely; write the strip, return PSNR of tick 1 and of repeating the frame, and what is
    left at the end of motion, sharpness and contrast, as shares of the recording's.
    """
    spec, ticks = world.spec, max(SHOWN)
    generator = torch.Generator(device=latents.latents.device).manual_seed(7)
    begin = spec.window + 1
    starts = latents.starts(begin + ticks)
    chosen = starts[torch.linspace(0, len(starts) - 1, FIGURES, device=starts.device).long()]
    clip = latents.clips(spec, chosen, 1 + begin + ticks, generator).clip
    with torch.autocast(clip.clean.device.type, torch.bfloat16):
        made = roll_out(world, clip, begin, ticks, generator)
        pictures = [
            to_picture(world.codec.decode(x)) for x in (made[:, 0], clip.clean[:, begin + 1], clip.clean[:, begin])
        ]
        rows = []
        for player in range(PLAYERS):
            for source, offset in ((clip.clean, begin), (made, -1)):
                wanted = torch.stack([source[player * FIGURES // PLAYERS, offset + t] for t in SHOWN])
                rows.append(list(to_picture(world.codec.decode(wanted)).cpu().numpy()))
    save_strip(path, rows)
    late = [to_picture(world.codec.decode(x[:, -1])).float() for x in (clip.clean, made)]
    sharp, contrast = ([float(measure(p)) for p in late] for measure in (_sharpness, _contrast))
    motion = made.diff(dim=1).square().mean((0, 2, 3, 4)).sqrt()
    real_motion = clip.clean[:, begin + 1 :].diff(dim=1).square().mean((0, 2, 3, 4)).sqrt()
    return {
        "next_psnr": float(psnr(pictures[1], pictures[0])),
        "copy_psnr": float(psnr(pictures[1], pictures[2])),
        "motion_late": float(motion[-25:].mean() / real_motion[-25:].mean()),
        "sharp_late": sharp[1] / sharp[0],
        "contrast_late": contrast[1] / contrast[0],
    }


def _sharpness(pictures: Tensor) -> Tensor:
    return pictures.diff(dim=1).abs().mean()


def _contrast(pictures: Tensor) -> Tensor:
    return pictures.std((1, 2)).mean()


def roll_out(
    world: World, clip: Clip, begin: int, ticks: int, generator: torch.Generator, schedule: ScheduleTable | None = None
) -> Tensor:
    """Free-running latents [batch, ticks, …] under the clip's actions and prompts, from its first 1 + begin frames.

    Prompts may change on the way, as they do in recordings; so may what is led.
    """
    schedule = schedule or world.spec.schedule
    state = begin_play(world, clip, begin, schedule)
    made = []
    for t in range(ticks):
        noise = torch.randn(
            len(clip.clean), schedule.noises, *world.spec.latent_shape, device=clip.clean.device, generator=generator
        )
        frame = begin + 1 + t
        state = tell(world, state, clip.prompt[:, frame])
        told = clip.actions[:, frame, -1], clip.prompt[:, frame]
        latent, state = next_latent(world, state, *told, noise, schedule, clip.led_at(frame))
        made.append(latent)
    return torch.stack(made, 1)


@torch.no_grad()
def begin_play(world: World, clip: Clip, begin: int, schedule: ScheduleTable) -> State:
    """The state after the clip's sink and its frames 1 … begin have been shown; needs begin ≥ window + 1."""
    window = world.spec.window
    kept = [0, *range(begin - window, begin + 1)]
    state = start(world, clip.clean[:, kept], clip.actions[:, kept], schedule)
    return recache(world, state, clip.prompt[:, begin])


def tell(world: World, state: State, prompt: Tensor) -> State:
    """The state after a prompt [batch, prompt_tokens, prompt_dim], some of which may be new."""
    return recache(world, state, prompt) if (state["told"] != prompt).any() else state

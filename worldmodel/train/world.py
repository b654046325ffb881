"""Train the generator by diffusion forcing on recorded clips (`worldloop train world`).

Every frame of a clip is denoised from its own clean history, in single frames (frame-wise play) or in tiles of rising
sigmas (rolling windows, partial ones too), so that one set of weights knows both. In the last part of the time, every
second step runs on the world's own roll-outs (self_forcing.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.prompt.encoder import PromptEncoder
from worldmodel.spec import WorldSpec
from worldmodel.tick import World
from worldmodel.train.codec import load_codec
from worldmodel.train.latents import LatentSet, load_latents
from worldmodel.train.optimisers import optimisers
from worldmodel.train.preview import preview
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.self_forcing import ROLL_OUT, own_loss
from worldmodel.train.team import Team
from worldmodel.transformer.clip import Clip, clip_layer, denoise_clip

CLIP_FRAMES = 20  # the sink and 19 frames in a row
OWN_PART = 0.66  # the last share of the training time, where every second step is an own roll-out
SETTLING = 2  # frames at a clip's start whose speed cannot be known; they carry no loss
HISTORY_NOISE = 0.1  # half of the clips have up to this much noise on their history, unannounced
PROMPT_NOISE = 0.1
SINGLE = 0.8  # share of steps with single frames
PURE = 0.5  # share of their frames that start from pure noise, as every frame does at play
SIGMA_FLOOR = 0.4  # x0 errors count 1 / max(sigma, floor)²


def train_world(
    spec: WorldSpec,
    data: Path,
    out: Path,
    minutes: float,
    batch: int = 64,
    seed: int = 0,
    resume: bool = False,
    init: Path | None = None,
) -> dict[str, float]:
    """Train until `minutes` are spent; needs OUT/codec.safetensors, writes OUT/world.safetensors.

    init: weights to begin from instead of random ones.
    """
    team = Team.join()
    torch.manual_seed(seed + 1000 * team.rank)
    latents, world = prepare(spec, data, out, team)
    if init is not None:
        load_weights(world.generator, init)
    begin = spec.window + 1
    starts, own_starts = latents.starts(CLIP_FRAMES - 1), latents.starts(begin + ROLL_OUT)
    layer = compiled(clip_layer, minutes, team)
    run = Run(out, "world", world.generator, optimisers(world.generator), Budget(minutes), team, resume=resume)
    # Two processes must not draw the same clips, and a resumed run not the same clips again.
    draw = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, run.step)) & 0x7FFFFFFF)

    def clips(among: Tensor, frames: int) -> tuple[Clip, Tensor, Tensor]:
        start = among[torch.randint(len(among), (batch,), device=team.device, generator=draw)]
        return latents.clips(spec, start, frames, draw)

    def step(number: int) -> dict[str, Tensor]:
        own = number % 2 == 0 and team.agree(run.done) > 1 - OWN_PART
        with torch.autocast(team.device.type, torch.bfloat16):
            if own:
                clip, _, _ = clips(own_starts, 1 + begin + ROLL_OUT)
                figures = {"own": own_loss(world, clip, begin, layer, draw)}
            else:
                sigma, tile_start = draw_tiles(batch, CLIP_FRAMES, draw)
                loss, plain = forcing_loss(world, *clips(starts, CLIP_FRAMES), sigma, tile_start, layer)
                figures = {"loss": loss, "x0_mse": plain.detach()}
        next(iter(figures.values())).backward()
        return {name: figure.detach() for name, figure in figures.items()}

    return run.loop(step, lambda step: preview(world, latents, out / f"world-{step:06d}.png"))


def prepare(spec: WorldSpec, data: Path, out: Path, team: Team) -> tuple[LatentSet, World]:
    """The recording as latents on the team's device, and a world with the trained codec and a fresh generator."""
    codec = load_codec(spec, out)
    encoder = PromptEncoder.load()
    latents = load_latents(data, spec, codec, encoder.encode, team).to(team.device)
    world = World(spec)
    world.codec = codec
    return latents, world.to(team.device)


def forcing_loss(
    world: World,
    clip: Clip,
    renamed: Tensor,
    scene: Tensor,
    sigma: Tensor,
    tile_start: Tensor | None,
    layer: Callable[..., Tensor],
) -> tuple[Tensor, Tensor]:
    """Weighted x0 error of all frames that can be known, and the plain error of those that start from pure noise."""
    target = clip.clean
    history = noisy_history(clip)
    noise = torch.randn_like(target)
    level = sigma[:, :, None, None, None]
    made = denoise_clip(
        world.generator, history, (1 - level) * target + level * noise, sigma, tile_start, world.spec.window, layer
    )
    # A renamed history belongs to frames of the newest scene only: that is all a player meets after a prompt switch.
    counts = ~(renamed[:, None] & (scene != scene[:, -1:]))
    counts[:, : SETTLING + 1] = False
    error = (made.float() - target).square().mean((2, 3, 4))
    weight = counts / sigma.clamp(min=SIGMA_FLOOR) ** 2
    pure = counts & (sigma == 1)
    return (error * weight).sum() / counts.sum(), (error * pure).sum() / pure.sum().clamp(min=1)


def noisy_history(clip: Clip) -> Clip:
    """The clip with some unannounced noise on half of the histories and a little on every prompt."""
    batch = clip.clean.shape[0]
    device = clip.clean.device
    amount = (
        torch.rand(batch, 1, 1, 1, 1, device=device)
        * HISTORY_NOISE
        * (torch.rand(batch, 1, 1, 1, 1, device=device) < 0.5)
    )
    jitter = PROMPT_NOISE * torch.randn(batch, 1, *clip.prompt.shape[2:], device=device)
    return Clip(
        clip.clean + amount * torch.randn_like(clip.clean),
        clip.clean_sigma,
        clip.actions,
        clip.clean_prompt + jitter,
        clip.prompt + jitter,
    )


def draw_tiles(batch: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Noise levels and tile starts, each [batch, frames]. Four steps of five have single frames only (tile starts
    None).
    """
    device = generator.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    if draw(1) < SINGLE:
        return torch.where(draw(batch, frames) < PURE, 1.0, 0.05 + 0.95 * draw(batch, frames)), None
    length = 2 + (3 * draw(batch, 1)).long()
    frame = torch.arange(frames, device=device).expand(batch, -1)
    place = (frame + (length * draw(batch, 1)).long()) % length
    # As at play, where a tile's levels are its places; in half of the clips anywhere below, as in partial windows.
    below = torch.where(draw(batch, 1) < 0.5, draw(batch, frames), 1.0)
    return ((place + below) / length).clamp(min=0.05), (frame - place).clamp(min=0)


def compiled(function: Callable[..., Tensor], minutes: float, team: Team) -> Callable[..., Tensor]:
    """`function` compiled where that can be done and pays: it takes a minute, and one block then serves for all."""
    able = team.device.type == "cuda" or shutil.which("g++") is not None
    return torch.compile(function, dynamic=False) if able and minutes > 5 else function

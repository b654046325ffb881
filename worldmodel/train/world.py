"""Train the generator by diffusion forcing on recorded clips (`worldloop train world`).

Every frame of a clip is denoised from its own clean history. Three kinds of tiles are mixed, so that one set of weights
knows each of them: single frames (frame-wise play), tiles of rising sigmas (rolling window, partial ones too) and tiles
of one sigma (diffusion forcing; they let the same weights judge whole roll-outs in distillation).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.prompt.encoder import PromptEncoder
from worldmodel.spec import WorldSpec
from worldmodel.tick import World
from worldmodel.train.codec import load_codec
from worldmodel.train.latents import LatentSet, load_latents
from worldmodel.train.preview import preview
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team
from worldmodel.transformer.clip import Clip, clip_layer, denoise_clip

CLIP_FRAMES = 20  # the sink and 19 frames in a row
SETTLING = 3  # frames at a clip's start whose speed cannot be known; they carry no loss
HISTORY_NOISE = 0.1  # half of the clips have up to this much noise on their history, unannounced
PROMPT_NOISE = 0.1
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
    starts = latents.starts(CLIP_FRAMES - 1)
    layer = compiled(clip_layer, team)
    run = Run(out, "world", world.generator, optimisers(world.generator), Budget(minutes), team, resume=resume)
    # Two processes must not draw the same clips, and a resumed run not the same clips again.
    draw = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, run.step)) & 0x7FFFFFFF)

    def step(_: int) -> dict[str, Tensor]:
        start = starts[torch.randint(len(starts), (batch,), device=team.device, generator=draw)]
        clip, renamed, scene = latents.clips(spec, start, CLIP_FRAMES, draw)
        sigma, tile_start = draw_tiles(batch, CLIP_FRAMES, spec.window, draw)
        with torch.autocast(team.device.type, torch.bfloat16):
            loss, plain = forcing_loss(world, clip, renamed, scene, sigma, tile_start, layer)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), "x0_mse": plain.detach()}

    return run.loop(step, lambda step: preview(world, latents, out / f"world-{step:06d}.png"))


def prepare(spec: WorldSpec, data: Path, out: Path, team: Team) -> tuple[LatentSet, World]:
    """The recording as latents on the team's device, and a world with the trained codec and a fresh generator."""
    codec = load_codec(spec, out)
    encoder = PromptEncoder.load()
    latents = load_latents(data, spec, codec, encoder.encode, team.device).to(team.device)
    world = World(spec)
    world.codec = codec
    return latents, world.to(team.device)


def forcing_loss(
    world: World,
    clip: Clip,
    renamed: Tensor,
    scene: Tensor,
    sigma: Tensor,
    tile_start: Tensor,
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
    pure = counts & (sigma == 1) & (tile_start == torch.arange(sigma.shape[1], device=sigma.device))
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


def draw_tiles(batch: int, frames: int, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise levels and tile starts, each [batch, frames]: 60 % single frames, 20 % rolling, 20 % tiles of one level."""
    device = generator.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    kind = draw(batch, 1)
    length = torch.where(
        kind < 0.6, 1, torch.where(kind < 0.8, 2 + (3 * draw(batch, 1)).long(), 2 + (7 * draw(batch, 1)).long())
    )
    frame = torch.arange(frames, device=device).expand(batch, -1)
    offset = (length * draw(batch, 1)).long()
    place = (frame + offset) % length
    tile_start = (frame - place).clamp(min=0)
    # One draw per tile, one per frame; pure noise is where every frame begins, so it is drawn most.
    tile = torch.div(frame + offset, length, rounding_mode="floor")
    per_tile = draw(batch, frames + 16).gather(1, tile)
    pure = draw(batch, frames + 16).gather(1, tile) < 0.4
    level = torch.where(pure, 1.0, 0.05 + 0.95 * per_tile)
    rising = (place + per_tile.where(draw(batch, 1) < 0.5, torch.ones_like(per_tile))) / length
    return torch.where((kind >= 0.6) & (kind < 0.8), rising.clamp(min=0.05), level), tile_start


def optimisers(model: torch.nn.Module, rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for all the rest."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and name.startswith("blocks.") and "modulation" not in name else rest).append(
            parameter
        )
    return [
        torch.optim.Muon(matrices, lr=2e-3 * rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3 * rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def compiled(function: Callable[..., Tensor], team: Team) -> Callable[..., Tensor]:
    """`function` compiled where that pays: one block is compiled and serves all of them."""
    return torch.compile(function, dynamic=False) if team.device.type == "cuda" else function

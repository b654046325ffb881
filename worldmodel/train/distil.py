"""Finish a world on its own roll-outs, few passes a tick (`worldloop train distil`).

Self Forcing (arXiv:2506.08009) with DMD: the student plays from recorded starts under recorded keys, with cache and
schedule as at play; the same frames are then made again in parallel, with gradient at one randomly chosen pass, and pulled
by the difference between two scores: the frozen many-level model's ("real") and that of a critic that learns the student's
own frames ("fake"). The first frames of a roll-out, which recorded keys determine, are also held to the recording, and a
share of ordinary diffusion forcing keeps rolling windows alive.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.spec import WorldSpec
from worldmodel.tick import World, next_latent
from worldmodel.train.preview import begin_play, preview
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team
from worldmodel.train.world import CLIP_FRAMES, SIGMA_FLOOR, compiled, draw_tiles, forcing_loss, prepare
from worldmodel.transformer.clip import Clip, clip_layer, denoise_clip
from worldmodel.transformer.generator import Generator

ROLL_OUT = 12  # ticks
HELD = 4  # first ticks that are also compared with the recording
HELD_WEIGHT = 1.0
FORCING_WEIGHT = 0.5
CRITIC_STEPS = 2  # per step of the student


def distil_world(
    spec: WorldSpec,
    data: Path,
    out: Path,
    minutes: float,
    batch: int = 64,
    seed: int = 0,
    resume: bool = False,
    rate: float = 1e-4,
) -> dict[str, float]:
    """Train until `minutes` are spent; needs OUT/codec and OUT/world.safetensors, writes OUT/distil.safetensors."""
    team = Team.join()
    torch.manual_seed(seed + 1000 * team.rank)
    latents, world = prepare(spec, data, out, team)
    load_weights(world.generator, out / "world.safetensors")
    teacher = copy.deepcopy(world.generator).requires_grad_(False)
    critic = copy.deepcopy(world.generator)
    layer = compiled(clip_layer, team)
    student = torch.optim.AdamW(world.generator.parameters(), lr=rate, betas=(0.0, 0.999), weight_decay=0.01)
    critic_optimiser = torch.optim.AdamW(critic.parameters(), lr=2 * rate, betas=(0.0, 0.999), weight_decay=0.01)
    run = Run(
        out, "distil", world.generator, [student], Budget(minutes, warmup=20), team, ema=0.99, resume=resume,
        others={"critic": critic, "critic_optimiser": critic_optimiser},
    )  # fmt: skip
    begin = spec.window + 1
    starts, forcing_starts = latents.starts(begin + ROLL_OUT), latents.starts(CLIP_FRAMES - 1)
    draw = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, run.step, "distil")) & 0x7FFFFFFF)

    def pick(among: Tensor, count: int) -> Tensor:
        return among[torch.randint(len(among), (count,), device=team.device, generator=draw)]

    def step(_: int) -> dict[str, Tensor]:
        clip, _, _ = latents.clips(spec, pick(starts, batch), 1 + begin + ROLL_OUT, draw)
        with torch.autocast(team.device.type, torch.bfloat16):
            own, noises = play_out(world, clip, begin, draw)
            judge = Judge(own, begin, draw)
            made = judge.remake(world, noises, layer)
            critic_loss = own.clean.new_zeros(())
            for _ in range(CRITIC_STEPS):
                critic_optimiser.zero_grad(set_to_none=True)
                critic_loss = judge.critic_loss(critic, made.detach(), spec.window, layer)
                critic_loss.backward()  # type: ignore[no-untyped-call]
                team.average_gradients(critic.parameters())
                torch.nn.utils.clip_grad_norm_(critic.parameters(), 10.0)
                critic_optimiser.step()
            matching = judge.matching_loss(teacher, critic, made, spec.window, layer)
            held = (
                (made[:, begin + 1 : begin + 1 + HELD].float() - clip.clean[:, begin + 1 : begin + 1 + HELD])
                .square()
                .mean()
            )
            clips = latents.clips(spec, pick(forcing_starts, batch // 2), CLIP_FRAMES, draw)
            forcing, _ = forcing_loss(world, *clips, *draw_tiles(batch // 2, CLIP_FRAMES, spec.window, draw), layer)
        (matching + HELD_WEIGHT * held + FORCING_WEIGHT * forcing).backward()
        return {
            "matching": matching.detach(),
            "held": held.detach(),
            "forcing": forcing.detach(),
            "critic": critic_loss.detach(),
        }

    return run.loop(step, lambda step: preview(world, latents, out / f"distil-{step:06d}.png"))


@torch.no_grad()
def play_out(world: World, clip: Clip, begin: int, draw: torch.Generator) -> tuple[Clip, Tensor]:
    """Play the clip's keys from its first 1 + begin frames, as at play.

    Returns the clip with its later frames replaced by the world's own, and the noise that made them,
    [batch, frames, noises, channels, rows, columns] (zero where frames are recorded).
    """
    schedule = world.spec.schedule
    state = begin_play(world, clip, begin, schedule)
    clean = clip.clean.clone()
    batch, frames = clean.shape[:2]
    noises = clean.new_zeros(batch, frames, schedule.noises, *clean.shape[2:])
    noises[:, begin + 1 :] = torch.randn(noises[:, begin + 1 :].shape, device=clean.device, generator=draw)
    for frame in range(begin + 1, frames):
        latent, state = next_latent(
            world, state, clip.actions[:, frame, -1], clip.prompt[:, frame], noises[:, frame], schedule
        )
        clean[:, frame] = latent.float()
    return Clip(clean, clip.clean_sigma, clip.actions, clip.clean_prompt, clip.prompt), noises


class Judge:
    """The losses on one roll-out. Frames up to `begin` are recorded, the later ones are the student's own."""

    def __init__(self, own: Clip, begin: int, draw: torch.Generator) -> None:
        # History after a prompt switch is renamed at play only; here every frame keeps the prompt that it was made under.
        self.own = Clip(own.clean, own.clean_sigma, own.actions, own.prompt, own.prompt)
        self.begin, self.draw = begin, draw
        batch, frames = own.clean.shape[:2]
        self.each = torch.arange(frames, device=own.clean.device).expand(batch, -1)

    def remake(self, world: World, noises: Tensor, layer: Callable[..., Tensor]) -> Tensor:
        """The student's frames once more, all side by side, with gradient at one pass chosen at random."""
        schedule = world.spec.schedule
        stop = int(torch.randint(schedule.passes, (1,), device=self.draw.device, generator=self.draw))
        noisy = noises[:, :, 0]
        for p in range(stop + 1):
            sigma = torch.full(noisy.shape[:2], schedule.sigmas[p][0], device=noisy.device)
            with torch.set_grad_enabled(p == stop):
                clean = denoise_clip(world.generator, self.own, noisy, sigma, self.each, world.spec.window, layer)
            if p < stop:
                level = schedule.sigmas[p + 1][0]
                noisy = (1 - level) * clean.float() + level * noises[:, :, p + 1]
        return clean

    def critic_loss(self, critic: Generator, made: Tensor, window: int, layer: Callable[..., Tensor]) -> Tensor:
        """The critic learns to denoise the student's frames."""
        noisy, sigma, tiles = self.renoised(made.float())
        guess = denoise_clip(critic, self.own, noisy, sigma, tiles, window, layer).float()
        error = (guess - made.float()).square().mean((2, 3, 4)) / sigma.clamp(min=SIGMA_FLOOR) ** 2
        return error[:, self.begin + 1 :].mean()

    def matching_loss(
        self, teacher: Generator, critic: Generator, made: Tensor, window: int, layer: Callable[..., Tensor]
    ) -> Tensor:
        """Distribution matching: ½ · mean (x − stopgrad(x − g))², g = (fake − real) / mean |x − real| (Self Forcing)."""
        x = made.float()
        with torch.no_grad():
            noisy, sigma, tiles = self.renoised(x)
            real = denoise_clip(teacher, self.own, noisy, sigma, tiles, window, layer).float()
            fake = denoise_clip(critic, self.own, noisy, sigma, tiles, window, layer).float()
            late = slice(self.begin + 1, None)
            scale = (x - real)[:, late].abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
            target = x - (fake - real) / scale
        return 0.5 * (x - target)[:, late].square().mean()

    def renoised(self, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames at new noise levels: half the clips frame by frame, half as one tile of one level after the recorded frames."""
        batch, frames = made.shape[:2]
        device = made.device
        whole = torch.rand(batch, 1, device=device, generator=self.draw) < 0.5
        level = 0.02 + 0.96 * torch.rand(batch, frames, device=device, generator=self.draw)
        sigma = torch.where(whole, level[:, :1], level)
        tiles = torch.where(whole & (self.each > self.begin), self.begin + 1, self.each)
        depth = sigma[:, :, None, None, None]
        return (1 - depth) * made + depth * torch.randn_like(made), sigma, tiles

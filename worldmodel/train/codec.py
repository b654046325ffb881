"""Train the codec: pictures through a narrow, noise-proof latent and back (`worldloop train codec`)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.codec.small import Codec, to_picture
from worldmodel.errors import CheckpointError
from worldmodel.spec import WorldSpec
from worldmodel.tick import World
from worldmodel.train.dataset import Dataset
from worldmodel.train.frames import as_input, shards_of_frames
from worldmodel.train.optimisers import optimisers
from worldmodel.train.pictures import save_strip
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team

LATENT_NOISE = 0.1  # decoder sees latents with up to this much noise: generated ones are never exact
SHIFT = (1.0, 2.5)  # cells, down and across, by which pictures are displaced at most
CLOSER, ZOOM = 0.4, 0.15  # share of displaced pictures that come closer or recede, and by how much at most
HOLD = 0.2  # share of the time at full rate: nearly all of the gain comes while the rate falls


def train_codec(
    spec: WorldSpec,
    data: Path,
    out: Path,
    minutes: float,
    batch: int = 128,
    frames: int = 100_000,
    seed: int = 0,
    resume: bool = False,
    decoder_only: bool = False,
    init: Path | None = None,
) -> dict[str, float]:
    """Train until `minutes` are spent; writes OUT/codec.safetensors. Returns step, seconds, losses, held-out PSNR.

    init: weights to begin from instead of random ones.
    decoder_only: go on with the decoder of a trained codec alone and write OUT/decoder.safetensors, which takes its
    place; worlds trained on its latents stay valid.
    """
    team = Team.join()
    torch.manual_seed(seed + team.rank)
    pictures = load_pictures(data, frames, seed).to(team.device)
    held_out, pictures = pictures[:64], pictures[64:]
    codec = World(spec).codec.to(team.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    name, trained = "codec", codec
    if decoder_only:
        if init is not None:
            raise CheckpointError("--decoder-only goes on with the codec in OUT: leave out --init")
        name, trained, init = "decoder", codec.decoder, out / "codec.safetensors"
        codec.encoder.requires_grad_(False)
    if init is not None:
        load_weights(codec, init)
    run = Run(out, name, codec, optimisers(trained), Budget(minutes, hold=HOLD), team, resume=resume)

    def step(number: int) -> dict[str, Tensor]:
        chosen = pictures[torch.randint(len(pictures), (batch,), device=pictures.device)]
        target = as_input(chosen)
        with torch.autocast(team.device.type, torch.bfloat16):
            latent = codec.encode(target)
            noise = torch.rand(batch, 1, 1, 1, device=latent.device) * LATENT_NOISE
            if spec.codec.equivariant and number % 2:
                target, latent, seen = displaced(codec, target, latent.float())
                made = codec.decode(latent + noise * torch.randn_like(latent)) * seen
            else:
                made = codec.decode(latent + noise * torch.randn_like(latent))
        loss, squared = reconstruction_loss(made.float(), target)
        loss.backward()
        return {"loss": loss.detach(), "psnr": -10 * squared.detach().log10()}

    def show(step: int) -> dict[str, float]:
        target = as_input(held_out)
        made = codec.decode(codec.encode(target))
        real, shown = to_picture(target), to_picture(made)
        save_strip(out / f"{name}-{step:06d}.png", [list(real[:8].cpu().numpy()), list(shown[:8].cpu().numpy())])
        figures = {"held_out_psnr": float(psnr(real, shown))}
        if spec.codec.equivariant:
            figures["displaced_psnr"] = displaced_psnr(codec, target)
        return figures

    return run.loop(step, show)


def displaced(codec: Codec, pictures: Tensor, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and their latents, both moved by up to SHIFT and some of them scaled, and where of such a picture
    something is known, 1 or 0; pictures are 0 elsewhere.

    A generator that moves latents needs some that can be moved: decoded, they shall be the moved picture (EQ-VAE,
    arXiv:2502.09509).
    """
    batch, device = len(pictures), pictures.device
    height, (rows, columns) = pictures.shape[2], latents.shape[2:]
    whole = codec.padded(pictures)
    shift = (2 * torch.rand(2, batch, device=device) - 1) * torch.tensor(SHIFT, device=device).unsqueeze(1)
    zoom = torch.where(torch.rand(batch, device=device) < CLOSER, (2 * torch.rand(batch, device=device) - 1) * ZOOM, 0)
    turned = torch.zeros(batch, 2, 3, device=device)
    turned[:, 0, 0] = turned[:, 1, 1] = 1 + zoom
    turned[:, 0, 2], turned[:, 1, 2] = 2 * shift[1] / columns, 2 * shift[0] / rows  # in half pictures

    def moved(x: Tensor) -> Tensor:
        return F.grid_sample(x, F.affine_grid(turned, list(x.shape), align_corners=False), align_corners=False)

    there = F.pad(torch.ones_like(pictures[:, :1]), (0, 0, 0, whole.shape[2] - height))
    seen = (moved(there) > 0.999)[:, :, :height]
    return moved(whole)[:, :, :height] * seen, moved(latents), seen


def displaced_psnr(codec: Codec, pictures: Tensor) -> float:
    """PSNR of displaced pictures, where they are known, by their decoded displaced latents, in dB."""
    target, latents, seen = displaced(codec, pictures, codec.encode(pictures))
    squared = (((codec.decode(latents).clamp(0, 1) - target) * seen).square().sum() / (3 * seen.sum())).clamp(min=1e-10)
    return float(-10 * squared.log10())


def reconstruction_loss(made: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute, squared and edge error, weighted; and the mean squared error alone. Pictures in 0…1."""
    squared = (made - target).square().mean()
    edges = sum((made.diff(dim=axis) - target.diff(dim=axis)).abs().mean() for axis in (2, 3))
    return (made - target).abs().mean() + 0.5 * edges + 4 * squared, squared


def psnr(real: Tensor, made: Tensor) -> Tensor:
    """Pooled PSNR in dB of uint8 pictures."""
    return 10 * torch.log10(255**2 / (real.float() - made.float()).square().mean().clamp(min=1e-6))


def load_pictures(data: Path, frames: int, seed: int) -> Tensor:
    """About `frames` pictures from all over a recording, uint8 [frames, height, width, 3], in random order."""
    dataset = Dataset(data)
    share = min(1.0, frames / len(dataset))
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for pictures in shards_of_frames(dataset):
        keep = torch.randperm(len(pictures), generator=generator)[: max(1, round(share * len(pictures)))]
        chosen.append(pictures[keep])
    pictures = torch.cat(chosen)
    return pictures[torch.randperm(len(pictures), generator=generator)]


def load_codec(spec: WorldSpec, run: Path) -> Codec:
    """The trained codec of a run folder, frozen, with the decoder that was improved alone if there is one."""
    codec, trained, better = World(spec).codec, run / "codec.safetensors", run / "decoder.safetensors"
    load_weights(codec, trained)
    if better.exists():
        code = codec.code
        load_weights(codec, better)
        if codec.code != code:
            raise CheckpointError(
                f"{better} reads the latents of another {trained.name}: remove it, and improve the decoder of this one "
                "(worldloop train codec --decoder-only)"
            )
    return codec.requires_grad_(False).eval()

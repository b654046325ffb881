"""Waypoint-1's picture autoencoder (Overworld; weights Apache-2.0), written from its published facts.

Convolutions and bicubic resizes around residual side branches. It always encodes from 512 × 512 and always decodes to
360 × 640 pixels. Its files hold weight-normalised convolutions; `fuse` multiplies them out, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import SpecError

GROUP = 16  # channels per group of the 3 × 3 convolution in a residual block


@dataclass(frozen=True)
class WaypointAeSpec:
    """Sizes of the autoencoder; the defaults are Waypoint-1-Small's (its published `vae/config.json`)."""

    channels: int = 3  # of a picture; above three the others are zero
    latent_channels: int = 16
    encoder_widths: tuple[int, ...] = (64, 128, 256, 256, 256)  # before each stage, and after the last
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 1)  # residual blocks per stage
    decoder_widths: tuple[int, ...] = (1024, 1024, 512, 256, 128)
    decoder_blocks: tuple[int, ...] = (1, 1, 1, 1)
    side: int = 512  # pixels, of the square that is encoded
    height: int = 360  # pixels, of a decoded picture
    width: int = 640

    def __post_init__(self) -> None:
        if (
            len(self.encoder_widths) != len(self.encoder_blocks) + 1
            or len(self.decoder_widths) != len(self.decoder_blocks) + 1
        ):
            raise SpecError("waypoint_ae: the widths need one entry more than the blocks")
        for part, width in (("encoder", self.encoder_widths[-1]), ("decoder", self.decoder_widths[0])):
            if width % self.latent_channels:
                raise SpecError(
                    f"waypoint_ae.{part}_widths must be a multiple of latent_channels={self.latent_channels} "
                    f"next to the latent: got {width}"
                )


def spec_of(shapes: Mapping[str, tuple[int, ...]]) -> WaypointAeSpec | None:
    """The spec from a file's keys and shapes, before or after `fuse`; None if it is something else."""
    at = {name.replace(_DIRECTION, ".weight"): shape for name, shape in shapes.items() if not name.endswith(_LENGTH)}
    needed = [f"{part}.{conv}.proj.weight" for part in ("encoder", "decoder") for conv in ("conv_in", "conv_out")]
    if any(name not in at for name in (*needed, "encoder.blocks.0.down.proj.weight")):
        return None
    encoder_widths, decoder_widths = [at["encoder.conv_in.proj.weight"][0]], [at["decoder.conv_in.proj.weight"][0]]
    encoder_blocks, decoder_blocks = _blocks(at, "encoder"), _blocks(at, "decoder")
    for stage in range(len(encoder_blocks)):
        encoder_widths.append(at[f"encoder.blocks.{stage}.down.proj.weight"][0])
    for stage in range(len(decoder_blocks)):
        decoder_widths.append(at.get(f"decoder.blocks.{stage}.up.proj.weight", (decoder_widths[-1],))[0])
    return WaypointAeSpec(
        channels=at["encoder.conv_in.proj.weight"][1],
        latent_channels=at["decoder.conv_in.proj.weight"][1],
        encoder_widths=tuple(encoder_widths),
        encoder_blocks=encoder_blocks,
        decoder_widths=tuple(decoder_widths),
        decoder_blocks=decoder_blocks,
    )


def fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights from weight-normalised ones: length · direction / |direction|, per output channel.

    The log-variance head, which nothing at play reads, is left out.
    """
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("encoder.conv_out_logvar.") or name.endswith(_LENGTH):
            continue
        if name.endswith(_DIRECTION):
            length = tensors[name.removesuffix(_DIRECTION) + _LENGTH]
            norm = tensor.float().flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
            fused[name.removesuffix(_DIRECTION) + ".weight"] = (length.float() * tensor.float() / norm).to(tensor.dtype)
        else:
            fused[name] = tensor
    return fused


_LENGTH, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def _blocks(at: Mapping[str, tuple[int, ...]], part: str) -> tuple[int, ...]:
    """Residual blocks of every stage."""
    named = {tuple(name.split(".")[2:5:2]) for name in at if name.startswith(f"{part}.blocks.") and ".conv1." in name}
    stages = 1 + max(int(stage) for stage, _ in named)
    return tuple(sum(int(stage) == wanted for stage, _ in named) for wanted in range(stages))


class WaypointAe(nn.Module):
    """Pictures to latents and back, each by itself."""

    def __init__(self, spec: WaypointAeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder, self.decoder = Encoder(spec), Decoder(spec)

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents [batch, channels, side / 2^stages, side / 2^stages] of pictures 0…255 [batch, height, width, 3]."""
        like = self.decoder.conv_in.proj.weight
        x = (pictures.to(like) / 255 * 2 - 1).movedim(-1, 1)
        return self.encoder(F.pad(x, (0, 0, 0, 0, 0, self.spec.channels - x.shape[1])))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [batch, channels, height, width], about −1…1, not clamped."""
        return self.decoder(latents)

    def to_bytes(self, pictures: Tensor) -> Tensor:
        """uint8 [batch, height, width, 3] of decoded pictures."""
        return (to_unit(pictures).float() * 255).round().to(torch.uint8).movedim(1, -1)


def to_unit(pictures: Tensor) -> Tensor:
    """The colours of decoded pictures, [batch, 3, height, width] clamped to 0…1."""
    return (pictures[:, :3] / 2 + 0.5).clamp(0, 1)


class Encoder(nn.Module):
    """Stages of residual blocks, each halving the side; a side branch carries every stage's input past it."""

    def __init__(self, spec: WaypointAeSpec) -> None:
        super().__init__()
        self.side, widths = spec.side, spec.encoder_widths
        self.conv_in = Conv(spec.channels, widths[0], 3)
        self.blocks = nn.ModuleList(
            HalvingStage(a, b, count) for (a, b), count in zip(pairwise(widths), spec.encoder_blocks, strict=True)
        )
        self.residuals = nn.ModuleList(Unshuffle(a, b) for a, b in pairwise(widths))
        self.conv_out = Conv(widths[-1], spec.latent_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(_resize(x, self.side, self.side))
        for stage, beside in zip(self.blocks, self.residuals, strict=True):
            x = stage(x) + beside(x)
        latent = self.conv_out(x)
        groups = x.unflatten(1, (-1, latent.shape[1]))  # channels j, j + latent_channels, … make latent channel j
        return latent + groups.mean(1) * math.sqrt(groups.shape[1])


class Decoder(nn.Module):
    """The way back: stages doubling the side, then the picture's own size."""

    def __init__(self, spec: WaypointAeSpec) -> None:
        super().__init__()
        self.size, widths = (spec.height, spec.width), spec.decoder_widths
        self.conv_in = Conv(spec.latent_channels, widths[0], 3)
        self.blocks = nn.ModuleList(
            DoublingStage(a, b, count) for (a, b), count in zip(pairwise(widths), spec.decoder_blocks, strict=True)
        )
        self.residuals = nn.ModuleList(Shuffle(a, b) for a, b in pairwise(widths))
        self.conv_out = Conv(widths[-1], spec.channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        repeats = x.shape[1] // z.shape[1]
        x = x + z.repeat_interleave(repeats, dim=1) / math.sqrt(repeats)
        for stage, beside in zip(self.blocks, self.residuals, strict=True):
            x = stage(x) + beside(x)
        return _resize(self.conv_out(F.silu(x)), *self.size)


class HalvingStage(nn.Module):
    """Residual blocks, then half the side and a new width."""

    def __init__(self, dim_in: int, dim_out: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(dim_in) for _ in range(count)))
        self.down = Conv(dim_in, dim_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.down(_resize(x, x.shape[2] // 2, x.shape[3] // 2))


class DoublingStage(nn.Module):
    """A new width where it changes, twice the side, then residual blocks."""

    def __init__(self, dim_in: int, dim_out: int, count: int) -> None:
        super().__init__()
        self.up = nn.Identity() if dim_in == dim_out else Conv(dim_in, dim_out, 1, bias=False)
        self.blocks = nn.Sequential(*(ResidualBlock(dim_out) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.blocks(_resize(x, x.shape[2] * 2, x.shape[3] * 2))


class ResidualBlock(nn.Module):
    """Twice as wide inside, with a grouped 3 × 3 convolution in the middle."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, 2 * dim, 1)
        self.conv2 = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim // GROUP)
        self.conv3 = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.01)), 0.01))


class Unshuffle(nn.Module):
    """Half the side: four neighbours become channels."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim_out // 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.proj(x), 2)


class Shuffle(nn.Module):
    """Twice the side: four channels become neighbours."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim_out * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.proj(x), 2)


class Conv(nn.Module):
    """A convolution that keeps the size, under the checkpoint's name."""

    def __init__(self, dim_in: int, dim_out: int, taps: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim_in, dim_out, taps, padding=taps // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def _resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bicubic with coefficient −0.75, cell centres aligned, no blur when shrinking."""
    return F.interpolate(x, size=(height, width), mode="bicubic", align_corners=False, antialias=False)

"""TAEHV, the tiny autoencoder for video (github.com/madebyollin/taehv, MIT): a fast decoder for Wan's latents.

`taew2_1` serves Wan 2.1. It takes latents as the generator makes them and gives pictures in [0, 1]. The memory of a
stream is one earlier activation per memory block, in a flat dict. Parameter names are those of the public file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.codec.streaming import State, lead_repeated
from worldmodel.errors import SpecError

BLOCKS = 3  # memory blocks per level


@dataclass(frozen=True)
class TaehvSpec:
    """Sizes of the autoencoder; the defaults are those of `taew2_1`."""

    decoder_channels: tuple[int, ...] = (256, 128, 64, 64)  # of each level, then of the output convolution
    encoder_channels: int = 64
    latent_channels: int = 16
    patch_size: int = 1  # pixels that the outermost convolutions take as one, along a side
    decoder_time_upscale: tuple[bool, ...] = (False, True, True)  # which levels double the frame count
    decoder_space_upscale: tuple[bool, ...] = (True, True, True)
    encoder_time_downscale: tuple[bool, ...] = (True, True, False)

    def __post_init__(self) -> None:
        levels = len(self.decoder_channels) - 1
        if not len(self.decoder_time_upscale) == len(self.decoder_space_upscale) == levels:
            raise SpecError(f"taehv.decoder_time_upscale and .decoder_space_upscale need one entry per level, {levels}")

    @property
    def growth(self) -> int:
        """Pictures that a latent frame becomes."""
        return 2 ** sum(self.decoder_time_upscale)

    @property
    def group(self) -> int:
        """Pictures that become a latent frame. Some decoders leave doublings out, for a cheaper preview."""
        return 2 ** sum(self.encoder_time_downscale)


def matches(shapes: Mapping[str, tuple[int, ...]]) -> TaehvSpec | None:
    """The spec of a `taew*` file from its keys and shapes; None if it is something else."""
    convs = [name for name in shapes if re.fullmatch(r"decoder\.\d+\.weight", name)]
    grows = sorted((name for name in shapes if re.fullmatch(r"decoder\.\d+\.conv\.weight", name)), key=_index)
    pools = sorted((name for name in shapes if re.fullmatch(r"encoder\.\d+\.conv\.weight", name)), key=_index)
    if "decoder.1.weight" not in shapes or "encoder.0.weight" not in shapes or not grows or not pools:
        return None
    widths = [shapes[name][0] for name in sorted(convs, key=_index)][:-1]
    return TaehvSpec(
        decoder_channels=tuple(widths),
        encoder_channels=shapes["encoder.0.weight"][0],
        latent_channels=shapes["decoder.1.weight"][1],
        patch_size=math.isqrt(shapes["encoder.0.weight"][1] // 3),
        decoder_time_upscale=tuple(shapes[name][0] > shapes[name][1] for name in grows),
        decoder_space_upscale=(True,) * len(grows),
        encoder_time_downscale=tuple(shapes[name][1] > shapes[name][0] for name in pools),
    )


def _index(name: str) -> int:
    return int(name.split(".")[1])


class Taehv(nn.Module):
    """Pictures in [0, 1] to latents and back, a portion at a time."""

    def __init__(self, spec: TaehvSpec) -> None:
        super().__init__()
        self.spec = spec
        self.growth = spec.growth
        self.encoder = _encoder(spec)
        self.decoder = _decoder(spec)

    def empty_state(self, batch: int, rows: int, columns: int) -> State:
        """The decoder's memory before a stream.

        `decoder.phase` int64 [batch]: 1 once a latent frame is through. `decoder.<layer>`: [batch, channels, rows',
        columns'], the input of a memory block one step ago, at the block's own frame rate.
        """
        return self._empty("decoder", self.decoder, batch, rows, columns)

    def empty_encoder_state(self, batch: int, rows: int, columns: int) -> State:
        """The encoder's memory before a stream; rows and columns are those of the latent."""
        # The encoder starts at full size, which is the latent's times all its halvings.
        side = 2 ** len(self.spec.encoder_time_downscale)
        return self._empty("encoder", self.encoder, batch, rows * side, columns * side)

    def _empty(self, prefix: str, layers: nn.Sequential, batch: int, rows: int, columns: int) -> State:
        like = next(layers.parameters())
        state = {f"{prefix}.phase": torch.zeros(batch, dtype=torch.int64, device=like.device)}
        for index, layer in enumerate(layers):
            if isinstance(layer, MemoryBlock):
                state[f"{prefix}.{index}"] = like.new_zeros(batch, layer.channels, rows, columns)
            elif isinstance(layer, Enlarge):
                rows, columns = rows * layer.factor, columns * layer.factor
            elif isinstance(layer, nn.Conv2d):
                rows, columns = rows // layer.stride[0], columns // layer.stride[1]
        return state

    def decode(self, latents: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Pictures [batch, frames · growth, 3, height, width] in [0, 1], clamped, and the memory after them.

        latents: [batch, frames, channels, rows, columns]. A stream's first picture comes `growth` times.
        """
        starting = state["decoder.phase"] == 0
        x, after = _through("decoder", self.decoder, latents, state)
        if self.spec.patch_size > 1:
            x = F.pixel_shuffle(x, self.spec.patch_size)
        # What the first latent frame grows into before its last picture is no picture: the public code trims it.
        first = lead_repeated(x[:, : self.growth], starting)
        pictures = torch.cat([first, x[:, self.growth :]], dim=1).clamp(0, 1)
        return pictures, {**after, "decoder.phase": torch.ones_like(state["decoder.phase"])}

    def encode(self, pictures: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Latents [batch, frames / group, channels, rows, columns] and the memory after them.

        pictures: [batch, frames, 3, height, width] in [0, 1], whole groups.
        """
        if pictures.shape[1] % self.spec.group:
            raise SpecError(f"pictures must come in groups of {self.spec.group} frames: got {pictures.shape[1]}")
        if self.spec.patch_size > 1:
            pictures = F.pixel_unshuffle(pictures, self.spec.patch_size)
        latents, after = _through("encoder", self.encoder, pictures, state)
        return latents, {**after, "encoder.phase": torch.ones_like(state["encoder.phase"])}

    def encode_video(self, video: Tensor) -> Tensor:
        """Latents of a video [batch, frames, 3, height, width] in [0, 1]; its last picture fills the last group."""
        batch, frames, _, height, width = video.shape
        filler = video[:, -1:].expand(-1, -frames % self.spec.group, -1, -1, -1)
        side = self.spec.patch_size * 2 ** len(self.spec.encoder_time_downscale)
        state = self.empty_encoder_state(batch, height // side, width // side)
        return self.encode(torch.cat([video, filler], dim=1), state)[0]

    def from_signed(self, pictures: Tensor) -> Tensor:
        """Pictures in [0, 1] of pictures in [−1, 1]."""
        return (pictures + 1) / 2

    def to_bytes(self, pictures: Tensor) -> Tensor:
        """uint8 [..., height, width, 3] of pictures [..., 3, height, width] in [0, 1]."""
        return (pictures.float() * 255).round().to(torch.uint8).movedim(-3, -1)


class MemoryBlock(nn.Module):
    """A residual block that sees its input beside its own input one step earlier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Sequential(
            _conv(2 * channels, channels), nn.ReLU(), _conv(channels, channels), nn.ReLU(), _conv(channels, channels)
        )

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x: [batch, frames, channels, rows, columns]. before: the frame ahead of them, [batch, channels, …]."""
        past = torch.cat([before.unsqueeze(1), x[:, :-1]], dim=1)
        return F.relu(_each_frame(self.conv, torch.cat([x, past], dim=2)) + x)


class Grow(nn.Module):
    """Every frame becomes `factor` frames by a 1×1 convolution, which is there even when the factor is 1."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, factor * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _each_frame(self.conv, x).unflatten(2, (self.factor, -1)).flatten(1, 2)


class Pool(nn.Module):
    """`factor` neighbouring frames become one by a 1×1 convolution."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(factor * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _each_frame(self.conv, x.unflatten(1, (-1, self.factor)).flatten(2, 3))


class Enlarge(nn.Module):
    """Every cell becomes `factor` × `factor` equal cells."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(self.factor))


class Squash(nn.Module):
    """Keep latents within ±3, softly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def _decoder(spec: TaehvSpec) -> nn.Sequential:
    widths = spec.decoder_channels
    layers: list[nn.Module] = [Squash(), _conv(spec.latent_channels, widths[0]), nn.ReLU()]
    for level, (dim_in, dim_out) in enumerate(pairwise(widths)):
        layers += [MemoryBlock(dim_in) for _ in range(BLOCKS)]
        layers.append(Enlarge(2 if spec.decoder_space_upscale[level] else 1))
        layers.append(Grow(dim_in, 2 if spec.decoder_time_upscale[level] else 1))
        layers.append(_conv(dim_in, dim_out, bias=False))
    return nn.Sequential(*layers, nn.ReLU(), _conv(widths[-1], 3 * spec.patch_size**2))


def _encoder(spec: TaehvSpec) -> nn.Sequential:
    width = spec.encoder_channels
    layers: list[nn.Module] = [_conv(3 * spec.patch_size**2, width), nn.ReLU()]
    for in_time in spec.encoder_time_downscale:
        layers += [Pool(width, 2 if in_time else 1), _conv(width, width, stride=2, bias=False)]
        layers += [MemoryBlock(width) for _ in range(BLOCKS)]
    return nn.Sequential(*layers, _conv(width, spec.latent_channels))


def _through(prefix: str, layers: nn.Sequential, x: Tensor, before: Mapping[str, Tensor]) -> tuple[Tensor, State]:
    """Frames [batch, frames, channels, rows, columns] through all layers, and what the memory blocks keep of them."""
    after: State = {}
    for index, layer in enumerate(layers):
        if isinstance(layer, MemoryBlock):
            name = f"{prefix}.{index}"
            after[name] = x[:, -1].clone()
            x = layer(x, before[name])
        else:
            x = layer(x) if isinstance(layer, (Grow, Pool)) else _each_frame(layer, x)
    return x, after


def _conv(dim_in: int, dim_out: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1, **options)


def _each_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a picture layer to [batch, frames, channels, rows, columns]."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

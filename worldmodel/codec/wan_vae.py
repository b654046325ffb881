"""Wan 2.1's causal video autoencoder (arXiv:2503.20314; public file `Wan2.1_VAE.pth`), with its memory as plain state.

Every convolution over time remembers the last two frames it was given. That memory goes in and comes out as a flat
dict, so decoding in portions equals decoding at once, and a stream can be saved, rewound or batched like any state.
Parameter names are those of the public file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.codec.streaming import State, lead_repeated
from worldmodel.errors import SpecError

MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


@dataclass(frozen=True)
class WanVaeSpec:
    """Sizes of the autoencoder; the defaults are the published ones."""

    dim: int = 96  # channels at full picture size
    z_dim: int = 16  # latent channels
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)  # channels of a level, in `dim`; each next level has half the side
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # which halvings also halve the frame count
    mean: tuple[float, ...] = MEAN  # of a latent channel
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise SpecError(
                f"wan_vae.temporal_downsample needs one entry per halving, {len(self.dim_mult) - 1}: "
                f"got {self.temporal_downsample}"
            )
        if not len(self.mean) == len(self.std) == self.z_dim:
            raise SpecError(f"wan_vae.mean and .std need one number per latent channel, {self.z_dim}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full size down."""
        return tuple(self.dim * m for m in self.dim_mult)

    @property
    def side(self) -> int:
        """Pixels per latent cell."""
        return 2 ** len(self.temporal_downsample)

    @property
    def growth(self) -> int:
        """Pictures per latent frame."""
        return 2 ** sum(self.temporal_downsample)


def matches(shapes: Mapping[str, tuple[int, ...]]) -> WanVaeSpec | None:
    """The spec of `Wan2.1_VAE.pth` from its keys and shapes; None if it is something else.

    Mean and deviation of the latents are in no file; the published ones belong to 16 channels.
    """
    down = "encoder.downsamples"
    layers = sorted({int(name.split(".")[2]) for name in shapes if name.startswith(f"{down}.")})
    halvings = [layer for layer in layers if f"{down}.{layer}.resample.1.weight" in shapes]
    z_dim = shapes.get("conv2.weight", (0,))[0]
    if z_dim != len(MEAN) or not halvings or "decoder.middle.1.to_qkv.weight" not in shapes:
        return None
    dim = shapes["encoder.conv1.weight"][0]
    level_ends = (*(layer - 1 for layer in halvings), layers[-1])
    return WanVaeSpec(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(shapes[f"{down}.{layer}.residual.6.weight"][0] // dim for layer in level_ends),
        num_res_blocks=halvings[0],
        temporal_downsample=tuple(f"{down}.{layer}.time_conv.weight" in shapes for layer in halvings),
    )


class WanVae(nn.Module):
    """Pictures in [−1, 1] to normalised latents and back, a portion at a time."""

    def __init__(self, spec: WanVaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.growth = spec.growth
        self.encoder = Encoder(spec)
        self.conv1 = nn.Conv3d(2 * spec.z_dim, 2 * spec.z_dim, 1)
        self.conv2 = nn.Conv3d(spec.z_dim, spec.z_dim, 1)
        self.decoder = Decoder(spec)
        for name, conv in self.named_modules():
            if isinstance(conv, TimeConv):
                conv.name = name

    def empty_state(self, batch: int, rows: int, columns: int) -> State:
        """The decoder's memory before a stream. `decoder.phase` int64 [batch] counts latent frames up to two.

        0: nothing decoded. 1: one frame is through, the temporal up-samplers let it pass and remember nothing (the
        public code's "Rep"). 2: they remember. `decoder.<layer>`: [batch, channels, frames, rows', columns'].
        """
        return self._empty(self.decoder, "decoder", batch, rows, columns)

    def empty_encoder_state(self, batch: int, rows: int, columns: int) -> State:
        """The encoder's memory before a stream; rows and columns are those of the latent."""
        return self._empty(self.encoder, "encoder", batch, rows, columns)

    def _empty(self, part: nn.Module, prefix: str, batch: int, rows: int, columns: int) -> State:
        weight = self.conv1.weight
        state = {f"{prefix}.phase": torch.zeros(batch, dtype=torch.int64, device=weight.device)}
        for conv in part.modules():
            if isinstance(conv, TimeConv):
                shape = batch, conv.in_channels, conv.memory, rows * conv.grid, columns * conv.grid
                state[conv.name] = weight.new_zeros(shape)
        return state

    def decode(self, latents: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Pictures [batch, frames · growth, 3, height, width], not clamped, and the memory after them.

        latents: [batch, frames, z, rows, columns], normalised. A stream's first picture comes `growth` times.
        """
        state, pictures = dict(state), []
        for latent in latents.unbind(1):
            made, state = self._decode_one(latent, state)
            pictures.append(made)
        return torch.cat(pictures, dim=1), state

    def _decode_one(self, latent: Tensor, state: State) -> tuple[Tensor, State]:
        phase = state["decoder.phase"]
        z = latent * self._per_channel(latent, self.spec.std) + self._per_channel(latent, self.spec.mean)
        stream = Stream(state, phase == 0)
        pictures = self.decoder(self.conv2(z.unsqueeze(2)), stream).transpose(1, 2)
        return lead_repeated(pictures, phase == 0), {**stream.after, "decoder.phase": (phase + 1).clamp(max=2)}

    def encode(self, pictures: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Normalised latents [batch, frames / growth, z, rows, columns] (the mean, no noise) and the memory after them.

        pictures: [batch, frames, 3, height, width] in [−1, 1], whole groups of `growth` frames. Of a stream's first
        group only the last picture counts: a video starts with one picture that is a latent frame by itself.
        """
        if pictures.shape[1] % self.growth:
            raise SpecError(f"pictures must come in groups of {self.growth} frames: got {pictures.shape[1]}")
        state, latents = dict(state), []
        for group in pictures.split(self.growth, dim=1):
            phase = state["encoder.phase"]
            stream = Stream(state, phase == 0)
            mu = self.conv1(self.encoder(group.transpose(1, 2), stream))[:, : self.spec.z_dim, 0]
            latents.append((mu - self._per_channel(mu, self.spec.mean)) / self._per_channel(mu, self.spec.std))
            state = {**stream.after, "encoder.phase": (phase + 1).clamp(max=2)}
        return torch.stack(latents, dim=1), state

    def encode_video(self, video: Tensor) -> Tensor:
        """Latents [batch, 1 + (frames − 1) / growth, z, rows, columns] of a whole video or of a single picture.

        video: [batch, frames, 3, height, width] in [−1, 1], frames = 1 + a multiple of `growth`.
        """
        batch, _, _, height, width = video.shape
        lead = video[:, :1].expand(-1, self.growth - 1, -1, -1, -1)
        state = self.empty_encoder_state(batch, height // self.spec.side, width // self.spec.side)
        return self.encode(torch.cat([lead, video], dim=1), state)[0]

    def from_signed(self, pictures: Tensor) -> Tensor:
        return pictures

    def to_bytes(self, pictures: Tensor) -> Tensor:
        """uint8 [..., height, width, 3] of pictures [..., 3, height, width] in [−1, 1], clamped."""
        return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)

    def _per_channel(self, like: Tensor, numbers: tuple[float, ...]) -> Tensor:
        return like.new_tensor(numbers).view(1, -1, 1, 1)


class Stream:
    """One call's way through the layers: the memory before it, the memory it leaves, and who is just starting.

    A starting player has one real frame, the last; the others only fill the shape and count as the zeros that stand
    for the missing past.
    """

    def __init__(self, before: Mapping[str, Tensor], starting: Tensor) -> None:
        self.before = before
        self.after: State = {}
        # Past the start, which is nearly always, nothing needs hiding; a compiled graph cannot ask.
        self.mixed = torch.compiler.is_compiling() or bool(starting.any())
        self.starting = starting.view(-1, 1, 1, 1, 1)

    def with_past(self, conv: TimeConv, x: Tensor, real_frames: int = 1) -> Tensor:
        """x [batch, channels, frames, rows, columns] with the conv's past in front; its end is the next call's past.

        real_frames: how many of the last frames are real for a starting player.
        """
        if self.mixed and x.shape[2] > real_frames:
            filler = torch.arange(x.shape[2], device=x.device).view(1, 1, -1, 1, 1) < x.shape[2] - real_frames
            x = x.masked_fill(self.starting & filler, 0)
        x = torch.cat([self.before[conv.name], x], dim=2)
        self.after[conv.name] = x[:, :, -conv.memory :].clone()
        return x


class TimeConv(nn.Conv3d):
    """A causal convolution with three taps in time: its past stands in front, nothing behind."""

    name: str  # of its memory in the state, set by WanVae

    def __init__(self, dim_in: int, dim_out: int, grid: int, taps: int = 3, stride: int = 1) -> None:
        """grid: cells of its input per latent cell, along one side. taps: in space."""
        super().__init__(dim_in, dim_out, (3, taps, taps), stride=(stride, 1, 1), padding=(0, taps // 2, taps // 2))
        self.grid = grid
        self.memory = 3 - stride  # frames

    def follow(self, x: Tensor, stream: Stream) -> Tensor:
        return self(stream.with_past(self, x))


class Encoder(nn.Module):
    """Pictures [batch, 3, growth, height, width] of one group to moments [batch, 2 · z, 1, rows, columns]."""

    def __init__(self, spec: WanVaeSpec) -> None:
        super().__init__()
        widths, grid = spec.widths, spec.side
        self.conv1 = TimeConv(3, spec.dim, grid)
        layers: list[nn.Module] = []
        for level, (dim_in, dim_out) in enumerate(pairwise((spec.dim, *widths))):
            for block in range(spec.num_res_blocks):
                layers.append(ResidualBlock(dim_out if block else dim_in, dim_out, grid))
            if level < len(spec.temporal_downsample):
                grid //= 2
                layers.append(Halve(dim_out, grid, spec.temporal_downsample[level]))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * spec.z_dim, grid)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv1.follow(x, stream)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, stream)
        return _follow(self.head, x, stream)


class Decoder(nn.Module):
    """One latent frame [batch, z, 1, rows, columns] to pictures [batch, 3, growth, height, width]."""

    def __init__(self, spec: WanVaeSpec) -> None:
        super().__init__()
        widths, doublings, grid = spec.widths[::-1], spec.temporal_downsample[::-1], 1
        self.conv1 = TimeConv(spec.z_dim, widths[0], grid)
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        dim = widths[0]
        for level, dim_out in enumerate(widths):
            for _ in range(spec.num_res_blocks + 1):
                layers.append(ResidualBlock(dim, dim_out, grid))
                dim = dim_out
            if level < len(doublings):
                layers.append(Double(dim, grid, doublings[level]))
                dim, grid = dim // 2, grid * 2
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(dim, 3, grid)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv1.follow(x, stream)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, stream)
        return _follow(self.head, x, stream)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut."""

    def __init__(self, dim_in: int, dim_out: int, grid: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(dim_in, 3), nn.SiLU(), TimeConv(dim_in, dim_out, grid),
            ChannelNorm(dim_out, 3), nn.SiLU(), nn.Identity(), TimeConv(dim_out, dim_out, grid),
        )  # fmt: skip
        self.shortcut = nn.Identity() if dim_in == dim_out else nn.Conv3d(dim_in, dim_out, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return _follow(self.residual, x, stream) + self.shortcut(x)


class Double(nn.Module):
    """Twice the side, half the channels, and where asked twice the frames."""

    def __init__(self, dim: int, grid: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(dim, dim // 2, 3, padding=1))
        self.time_conv = TimeConv(dim, 2 * dim, grid, taps=1) if in_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        if self.time_conv is not None:
            x = self._grow(self.time_conv, x, stream)
        return _each_frame(self.resample, x)

    def _grow(self, conv: TimeConv, x: Tensor, stream: Stream) -> Tensor:
        # A stream's first latent frame passes by, and leaves no trace: not even it is real to this convolution.
        grown = conv(stream.with_past(conv, x, real_frames=0))
        grown = grown.unflatten(1, (2, -1)).transpose(1, 2).transpose(2, 3).flatten(2, 3)  # […, frames · 2, …]
        return torch.where(stream.starting, x.repeat_interleave(2, dim=2), grown) if stream.mixed else grown


class Halve(nn.Module):
    """Half the side, and where asked half the frames."""

    def __init__(self, dim: int, grid: int, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = TimeConv(dim, dim, grid, taps=1, stride=2) if in_time else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = _each_frame(self.resample, x)
        if self.time_conv is None:
            return x
        shrunk = self.time_conv.follow(x, stream)
        return torch.where(stream.starting, x[:, :, 1::2], shrunk) if stream.mixed else shrunk


class FrameAttention(nn.Module):
    """Every cell of a frame attends to all cells of the frame, one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return x + _each_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # [frames, cells, channels]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x))


class ChannelNorm(nn.Module):
    """Scale the channel vector of every cell to length √channels, times a weight. No epsilon inside the root."""

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim, 1), FrameAttention(dim), ResidualBlock(dim, dim, 1)])


def _head(dim_in: int, dim_out: int, grid: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(dim_in, 3), nn.SiLU(), TimeConv(dim_in, dim_out, grid))


def _follow(layers: nn.Sequential, x: Tensor, stream: Stream) -> Tensor:
    for layer in layers:
        x = layer.follow(x, stream) if isinstance(layer, TimeConv) else layer(x)
    return x


def _each_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a picture layer to [batch, channels, frames, rows, columns]."""
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

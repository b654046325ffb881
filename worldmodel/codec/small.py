"""The small autoencoder of native worlds: a picture to a grid of latents of unit length, and back, one frame at a time.

No memory between frames, so decoding streams by nature. The decoder works wide at latent size and grows the picture by
PixelShuffle, which is what a CPU does best (docs/worlds.md has the measurements).
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.spec import CodecSpec


class Conv(nn.Module):
    """A 3 × 3 convolution whose weight is kept as a matrix, [out, in · 9], so that Muon can train it."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        plain = nn.Conv2d(width_in, width_out, 3)
        self.weight, self.bias = nn.Parameter(plain.weight.detach().flatten(1).clone()), plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.unflatten(1, (-1, 3, 3)), self.bias, padding=1)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))), the last convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv(width, width)
        self.second = Conv(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Codec(nn.Module):
    """`encode` and `decode` between pictures in 0…1 and latents whose channels have mean square 1 at every cell.

    side: pictures are padded at the bottom to a multiple of this many pixels, a token's height.
    """

    def __init__(self, spec: CodecSpec, height: int, width: int, side: int) -> None:
        super().__init__()
        self.height, self.width, self.side = height, width, side
        wide = spec.encoder_width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, wide, spec.down, stride=spec.down),
            *(Residual(wide) for _ in range(spec.encoder_blocks)),
            nn.ReLU(),
            nn.Conv2d(wide, spec.channels, 3, padding=1),
        )

        layers: list[nn.Module] = []
        channels = spec.channels
        sizes = list(zip(spec.decoder_widths, spec.decoder_blocks, strict=True))
        for level, (wide, blocks) in enumerate(sizes):
            grow = 1 if level == 0 else 2
            layers += [nn.Conv2d(channels, wide * grow**2, 3 if level == 0 else 1, padding=1 if level == 0 else 0)]
            layers += [nn.PixelShuffle(grow)] if grow > 1 else []
            layers += [Residual(wide) for _ in range(blocks)]
            channels = wide
        grow = spec.down // 2 ** (len(sizes) - 1)
        self.decoder = nn.Sequential(
            *layers, nn.ReLU(), nn.Conv2d(channels, 3 * grow**2, 3, padding=1), nn.PixelShuffle(grow)
        )

    @property
    def code(self) -> str:
        """Which latents it makes: a hash of the encoder's weights."""
        weights = b"".join(p.detach().cpu().numpy().tobytes() for p in self.encoder.parameters())
        return hashlib.sha256(weights).hexdigest()[:12]

    def encode(self, pictures: Tensor) -> Tensor:
        """pictures: [batch, 3, height, width] in 0…1. Returns [batch, channels, rows, columns]."""
        latent = self.encoder(2 * self.padded(pictures) - 1)
        return latent * torch.rsqrt(latent.square().mean(1, keepdim=True) + 1e-6)

    def padded(self, pictures: Tensor) -> Tensor:
        """As many rows of pixels as the latent has cells for; the last row stands in for what is below."""
        return F.pad(pictures, (0, 0, 0, -self.height % self.side), mode="replicate")

    def decode(self, latent: Tensor) -> Tensor:
        """latent: [batch, channels, rows, columns]. Returns pictures [batch, 3, height, width], about 0…1."""
        return (self.decoder(latent)[:, :, : self.height] + 1) / 2

    def picture(self, latent: Tensor) -> Tensor:
        """What is shown: uint8 [batch, height, width, 3]."""
        return to_picture(self.decode(latent))


def to_picture(decoded: Tensor) -> Tensor:
    """[batch, 3, height, width] about 0…1 to uint8 [batch, height, width, 3]."""
    # Bytes come last: TensorRT has them as outputs only.
    return (decoded.float().clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)

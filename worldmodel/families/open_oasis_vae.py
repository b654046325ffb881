"""Open-Oasis' picture autoencoder (github.com/etched-ai/open-oasis, MIT): two stacks of plain transformer blocks.

A token is one patch of the picture and one cell of the latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import SpecError
from worldmodel.families.open_oasis_dit import PatchEmbedding
from worldmodel.families.rotary import axis_angles, turn_pairs


@dataclass(frozen=True)
class VitVaeSpec:
    """Sizes of the autoencoder; the defaults are those of the published ViT-L/20."""

    latent_dim: int = 16
    input_height: int = 360  # pixels
    input_width: int = 640
    patch_size: int = 20  # pixels
    enc_dim: int = 1024
    enc_depth: int = 6
    enc_heads: int = 16
    dec_dim: int = 1024
    dec_depth: int = 12
    dec_heads: int = 16
    mlp_ratio: float = 4.0
    scaling_factor: float = 0.07843137255  # the generator's latents are the autoencoder's times this

    def __post_init__(self) -> None:
        if self.input_height % self.patch_size or self.input_width % self.patch_size:
            raise SpecError(
                f"open_oasis: the picture's sides must be multiples of {self.patch_size}: "
                f"got {self.input_height}×{self.input_width}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, which are the latent's."""
        return self.input_height // self.patch_size, self.input_width // self.patch_size


class VitVae(nn.Module):
    """Pictures [batch, 3, height, width] in [−1, 1] to latents [batch, channels, rows, columns] and back."""

    def __init__(self, spec: VitVaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbedding(3, spec.enc_dim, spec.patch_size)
        self.encoder = _stack(spec.enc_dim, spec.enc_depth, spec.enc_heads, spec)
        self.enc_norm = nn.LayerNorm(spec.enc_dim, eps=1e-6)
        self.quant_conv = nn.Linear(spec.enc_dim, 2 * spec.latent_dim)
        self.post_quant_conv = nn.Linear(spec.latent_dim, spec.dec_dim)
        self.decoder = _stack(spec.dec_dim, spec.dec_depth, spec.dec_heads, spec)
        self.dec_norm = nn.LayerNorm(spec.dec_dim, eps=1e-6)
        self.predictor = nn.Linear(spec.dec_dim, 3 * spec.patch_size**2)

    def encode(self, pictures: Tensor) -> Tensor:
        """The mean latents, scaled for the generator."""
        x = self.enc_norm(self.encoder(self.patch_embed(pictures)))
        mean = self.quant_conv(x)[..., : self.spec.latent_dim]
        return mean.transpose(1, 2).unflatten(2, self.spec.grid) * self.spec.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, not clamped, from scaled latents."""
        x = (latents / self.spec.scaling_factor).flatten(2).transpose(1, 2)
        x = self.predictor(self.dec_norm(self.decoder(self.post_quant_conv(x))))
        (rows, columns), patch = self.spec.grid, self.spec.patch_size
        x = x.view(-1, rows, columns, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(-1, 3, rows * patch, columns * patch)


class VitBlock(nn.Module):
    """Attention over the picture, then MLP, each after a norm."""

    def __init__(self, dim: int, heads: int, spec: VitVaeSpec) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = VitAttention(dim, heads, spec.grid)
        self.mlp = VitMlp(dim, int(dim * spec.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VitAttention(nn.Module):
    """Attention whose heads carry rotary positions in their first half only."""

    angles: Tensor  # [tokens, at most head_dim / 4]

    def __init__(self, dim: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        # The public code divides the head size twice as integers, so part of every head is never turned.
        frequencies = torch.linspace(1, math.prod(grid) / 2, dim // heads // 4 // 2, device="cpu") * math.pi
        self.register_buffer("angles", axis_angles(*grid, frequencies), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(turn_pairs(q, self.angles), turn_pairs(k, self.angles), v)
        return self.proj(found.transpose(1, 2).flatten(2))


class VitMlp(nn.Module):
    """Linear, GELU (exact), Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def _stack(dim: int, depth: int, heads: int, spec: VitVaeSpec) -> nn.Sequential:
    if dim % heads:
        raise SpecError(f"open_oasis: the autoencoder's width {dim} must be a multiple of its {heads} heads")
    return nn.Sequential(*(VitBlock(dim, heads, spec) for _ in range(depth)))

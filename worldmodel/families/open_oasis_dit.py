"""Open-Oasis' generator (github.com/etched-ai/open-oasis, MIT): a transformer that attends over space, then over time.

Attention over time is causal and attention over space stays within a frame, so what clean frames compute does not
depend on the frame being denoised: their keys and values are made once per tick, and every denoising step runs on one
frame only. The public code runs the whole window at every step, with equal results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.errors import SpecError
from worldmodel.families.rotary import axis_angles, turn_pairs

KeyValue = tuple[Tensor, Tensor]  # each [batch · tokens, heads, frames, head_dim], keys turned

TIME_FREQUENCIES = 128


@dataclass(frozen=True)
class DitSpec:
    """Sizes of the generator; the defaults are those of the published 500M checkpoint."""

    latent_height: int = 18
    latent_width: int = 32
    patch_size: int = 2
    in_channels: int = 16
    hidden_size: int = 1024
    depth: int = 16
    num_heads: int = 16
    mlp_ratio: float = 4.0
    external_cond_dim: int = 25  # numbers of an action
    max_frames: int = 32  # the window, the new frame included

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise SpecError(
                f"open_oasis.hidden_size must be a multiple of num_heads={self.num_heads}: got {self.hidden_size}"
            )
        if self.latent_height % self.patch_size or self.latent_width % self.patch_size:
            raise SpecError(f"open_oasis: the latent's sides must be multiples of patch_size={self.patch_size}")
        if self.max_frames < 2:
            raise SpecError(
                f"open_oasis.max_frames must be at least 2, the new frame and one before: got {self.max_frames}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.latent_height // self.patch_size, self.latent_width // self.patch_size


class Dit(nn.Module):
    """Predicts v of latent frames, each at its own noise level."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.spec = spec
        hidden, patch = spec.hidden_size, spec.patch_size
        self.x_embedder = PatchEmbedding(spec.in_channels, hidden, patch)
        self.t_embedder = LevelEmbedding(hidden)
        self.external_cond = nn.Linear(spec.external_cond_dim, hidden)
        self.blocks = nn.ModuleList(Block(spec, owns_frequencies=index == 0) for index in range(spec.depth))
        self.final_layer = FinalLayer(hidden, patch * patch * spec.in_channels)

    def forward(
        self, x: Tensor, levels: Tensor, actions: Tensor, past: Sequence[KeyValue], visible: Tensor
    ) -> tuple[Tensor, list[KeyValue]]:
        """v of `frames` latent frames, and their keys and values in every block.

        x: [batch, frames, channels, rows, columns]. levels: int64 [batch, frames], 0 clean to 999 noise.
        actions: [batch, frames, action_dim]. past: what earlier frames left, one entry per block, or empty.
        visible: bool [batch, frames, past + frames], which frames a frame may see.
        """
        batch, frames = x.shape[:2]
        angles = self._angles(visible.shape[-1])
        mask = visible.repeat_interleave(math.prod(self.spec.grid), dim=0).unsqueeze(1)  # [batch · tokens, 1, …]
        condition = F.silu(self.t_embedder(levels, x.dtype) + self.external_cond(actions)).unsqueeze(2)
        tokens, kept = self.x_embedder(x.flatten(0, 1)).unflatten(0, (batch, frames)), []
        for index, block in enumerate(self.blocks):
            tokens, mine = block(tokens, condition, angles, past[index] if past else None, mask)
            kept.append(mine)
        return self._unpatch(self.final_layer(tokens, condition)), kept

    def _angles(self, frames: int) -> tuple[Tensor, Tensor]:
        """Rotary angles of the tokens [tokens, head_dim / 2] and of `frames` points in time [frames, head_dim / 2]."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        space, time = first.s_attn.rotary_emb.freqs, first.t_attn.rotary_emb.freqs
        return axis_angles(*self.spec.grid, space), torch.arange(frames, device=time.device).unsqueeze(1) * time

    def _unpatch(self, x: Tensor) -> Tensor:
        """[batch, frames, tokens, patch · patch · channels] to [batch, frames, channels, rows, columns]."""
        batch, frames = x.shape[:2]
        (rows, columns), patch = self.spec.grid, self.spec.patch_size
        x = x.view(batch, frames, rows, columns, patch, patch, -1).permute(0, 1, 6, 2, 4, 3, 5)
        return x.reshape(batch, frames, -1, rows * patch, columns * patch)


class Block(nn.Module):
    """Attention over space, MLP, attention over time, MLP; each half under its own modulation by level and action."""

    def __init__(self, spec: DitSpec, owns_frequencies: bool) -> None:
        super().__init__()
        hidden, mlp = spec.hidden_size, int(spec.hidden_size * spec.mlp_ratio)
        # The file holds the shared rotary frequencies once per kind, under block 0.
        self.s_attn = Attention(spec, spec.head_dim // 4 if owns_frequencies else 0)
        self.t_attn = Attention(spec, spec.head_dim // 2 if owns_frequencies else 0)
        self.s_mlp, self.t_mlp = Mlp(hidden, mlp), Mlp(hidden, mlp)
        self.s_adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(hidden, 6 * hidden))
        self.t_adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(hidden, 6 * hidden))

    def forward(
        self, x: Tensor, condition: Tensor, angles: tuple[Tensor, Tensor], past: KeyValue | None, mask: Tensor
    ) -> tuple[Tensor, KeyValue]:
        """x: [batch, frames, tokens, hidden]. condition: [batch, frames, 1, hidden], SiLU already applied."""
        space, time = angles
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.s_adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate * self._over_space(_modulate(x, shift, scale), space)
        x = x + mlp_gate * self.s_mlp(_modulate(x, mlp_shift, mlp_scale))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.t_adaLN_modulation(condition).chunk(6, dim=-1)
        found, kept = self._over_time(_modulate(x, shift, scale), time, past, mask)
        x = x + gate * found
        return x + mlp_gate * self.t_mlp(_modulate(x, mlp_shift, mlp_scale)), kept

    def _over_space(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = self.s_attn.project(x.flatten(0, 1))
        found = F.scaled_dot_product_attention(turn_pairs(q, angles), turn_pairs(k, angles), v)
        return self.s_attn.merge(found).view_as(x)

    def _over_time(self, x: Tensor, angles: Tensor, past: KeyValue | None, mask: Tensor) -> tuple[Tensor, KeyValue]:
        batch, frames, tokens, _ = x.shape
        q, k, v = self.t_attn.project(x.transpose(1, 2).flatten(0, 1))
        q, k = turn_pairs(q, angles[-frames:]), turn_pairs(k, angles[-frames:])
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        found = self.t_attn.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        return found.unflatten(0, (batch, tokens)).transpose(1, 2), (k, v)


class Attention(nn.Module):
    """Projections of one attention, and where the file keeps the rotary frequencies."""

    def __init__(self, spec: DitSpec, frequencies: int) -> None:
        super().__init__()
        self.heads = spec.num_heads
        self.to_qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size, bias=False)
        self.to_out = nn.Linear(spec.hidden_size, spec.hidden_size)
        if frequencies:
            self.rotary_emb = RotaryFrequencies(frequencies)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [rows, heads, length, head_dim] of x [rows, length, hidden]."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def merge(self, found: Tensor) -> Tensor:
        return self.to_out(found.transpose(1, 2).flatten(2))


class RotaryFrequencies(nn.Module):
    """Frequencies that a checkpoint carries."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(torch.ones(count))


class Mlp(nn.Module):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class PatchEmbedding(nn.Module):
    """Pictures or latents [rows, channels, height, width] to tokens [rows, tokens, hidden], row by row."""

    def __init__(self, channels: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, hidden, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class LevelEmbedding(nn.Module):
    """Noise levels [batch, frames] to vectors [batch, frames, hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * TIME_FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        index = torch.arange(TIME_FREQUENCIES, device=levels.device, dtype=torch.float32)
        angles = levels.float().unsqueeze(-1) * torch.exp(-math.log(10_000) * index / TIME_FREQUENCIES)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class FinalLayer(nn.Module):
    """The last modulation (shift, scale) and the projection to patches."""

    def __init__(self, hidden: int, patch_numbers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, patch_numbers)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(_modulate(x, shift, scale))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

"""Rotary positions (RoPE, arXiv:2104.09864) in the forms that public checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor


def axis_angles(rows: int, columns: int, frequencies: Tensor) -> Tensor:
    """Angles [rows · columns, 2 · count] of a grid whose sides both run from −1 to 1: first by row, then by column.

    frequencies: [count], the same for both axes ("pixel" frequencies of lucidrains/rotary-embedding-torch).
    """
    down = torch.linspace(-1, 1, rows, device=frequencies.device).unsqueeze(1) * frequencies
    across = torch.linspace(-1, 1, columns, device=frequencies.device).unsqueeze(1) * frequencies
    grid = torch.cat([down.unsqueeze(1).expand(-1, columns, -1), across.expand(rows, -1, -1)], dim=-1)
    return grid.flatten(0, 1)


def turn_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the neighbours (2i, 2i + 1) of the last axis by angle i; what has no angle stays.

    x: [..., length, head_dim]. angles: [length, at most head_dim / 2].
    """
    turned, rest = x[..., : 2 * angles.shape[-1]], x[..., 2 * angles.shape[-1] :]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    return torch.cat([pairs, rest], dim=-1)

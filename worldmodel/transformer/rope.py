"""Rotary positions over time, row and column (RoPE, arXiv:2104.09864, three axes as in Wan).

A head's channels are [row and column | time]. Row and column never change, so keys are turned by them before they are
cached; the turn by time happens when the cache is read, from positions that are data.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIME_BASE = 100.0  # distances in time are at most the window, a short base tells neighbours apart
SPACE_BASE = 100.0


def time_dim(head_dim: int) -> int:
    """Channels of a head that carry time; the rest is shared by row and column."""
    return head_dim // 4


def space_angles(rows: int, columns: int, head_dim: int) -> Tensor:
    """Angles [rows · columns, space_dim / 2] float32, first the row's frequencies, then the column's."""
    pairs = (head_dim - time_dim(head_dim)) // 4
    frequency = SPACE_BASE ** (-torch.arange(pairs) / pairs)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([row.reshape(-1, 1) * frequency, column.reshape(-1, 1) * frequency], dim=1)


def time_angles(distance: Tensor, head_dim: int) -> Tensor:
    """Angles [..., time_dim / 2] for keys that lie `distance` frames before their query."""
    pairs = time_dim(head_dim) // 2
    frequency = TIME_BASE ** (-torch.arange(pairs, device=distance.device) / pairs)
    return -distance.unsqueeze(-1) * frequency


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + half) of the last axis. x: [..., 2 · half]; cos, sin broadcast to [..., half]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

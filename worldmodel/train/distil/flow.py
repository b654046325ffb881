"""The teacher's probability flow: from noise to picture in many small steps (Euler, flow matching)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

GRID = 48  # steps of the whole way
SHIFT = 5.0

Denoise = Callable[[Tensor, Tensor], Tensor]  # noisy [batch, frames, …], sigma [batch, frames] to x0 like noisy


def grid(steps: int = GRID, shift: float = SHIFT) -> Tensor:
    """Falling noise levels from 1 to 0, [steps + 1], denser near pure noise."""
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


def euler(noisy: Tensor, clean: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """x at the following level, along the velocity (x - x0) / sigma. sigma, following: [batch, frames]."""
    sigma, following = (level.view(*level.shape, *[1] * (noisy.dim() - level.dim())) for level in (sigma, following))
    return noisy + (following - sigma) * (noisy - clean) / sigma


@torch.no_grad()
def along(denoise: Denoise, noise: Tensor, levels: Tensor) -> Tensor:
    """Where noise [batch, frames, …] comes through on its way through the levels [n], 1 the first and 0 the last:
    [n, batch, frames, …].
    """
    points = [noise]
    for sigma, following in itertools.pairwise(levels):
        here, there = (level.to(noise.device).expand(noise.shape[:2]) for level in (sigma, following))
        points.append(euler(points[-1], denoise(points[-1], here), here, there))
    return torch.stack(points)

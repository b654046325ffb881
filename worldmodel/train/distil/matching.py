"""Distribution matching (DMD): the arithmetic, without networks. Formulas as in Self Forcing, arXiv:2506.08009, and its
code: the student's samples move against the difference of two scores, the teacher's of what is real, and a critic's,
which learns what the student makes.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHIFT = 5.0  # draws noise levels towards pure noise
LEAST, MOST = 0.02, 0.98  # noise levels at which the scores are compared


def draw_sigma(count: int, draw: torch.Generator) -> Tensor:
    """Noise levels [count], one for all frames of a sample: uniform, shifted, clamped."""
    even = torch.rand(count, device=draw.device, generator=draw)
    return (SHIFT * even / (1 + (SHIFT - 1) * even)).clamp(LEAST, MOST)


def direction(sample: Tensor, real: Tensor, fake: Tensor, counts: Tensor | None = None) -> Tensor:
    """The way a sample must not go: x0 by the critic minus x0 by the teacher, in units of the sample's mean distance to
    the latter. All [batch, …]; both x0 are made of the sample with the same noise.

    counts: like the first axes of a sample, 1 where it counts; 0 elsewhere, where the direction is 0.
    """
    weight = _like(counts, sample)
    axes = tuple(range(1, sample.dim()))
    distance = ((sample - real).abs() * weight).sum(axes, keepdim=True) / weight.sum(axes, keepdim=True)
    return torch.nan_to_num((fake - real) / distance) * weight


def matching_loss(sample: Tensor, away: Tensor, counts: Tensor | None = None, weight: Tensor | float = 1.0) -> Tensor:
    """½ mean weight · (x - stopgrad(x - g))², whose gradient is weight · g over the number of elements. In float64.

    weight: broadcasts to the sample; what rewards make of it, see reward_forcing.py.
    """
    counted = _like(counts, sample).double()
    target = (sample.double() - away.double()).detach()
    lost: Tensor = (weight * counted * (sample.double() - target).square()).sum() / counted.sum().clamp(min=1)
    return 0.5 * lost


def critic_loss(made: Tensor, sample: Tensor, sigma: Tensor, counts: Tensor | None = None) -> Tensor:
    """Flow matching: squared error of the velocity (x_σ - x0) / σ that a predicted x0 stands for, against ε - x.

    made, sample: [batch, …]. sigma: [batch]. As x_σ is the same in both, it is the error of x0 over σ.
    """
    counted = _like(counts, sample)
    error = (made - sample) / sigma.view(-1, *[1] * (sample.dim() - 1))
    return (error.square() * counted).sum() / counted.sum().clamp(min=1)


def _like(counts: Tensor | None, sample: Tensor) -> Tensor:
    if counts is None:
        return torch.ones_like(sample)
    return counts.view(*counts.shape, *[1] * (sample.dim() - counts.dim())).expand_as(sample).to(sample.dtype)

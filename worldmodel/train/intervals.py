"""How sure is a figure? Bootstrap intervals over rollouts: rollouts are drawn with replacement and judged again.

Ticks of one rollout resemble each other, so rollouts, not ticks, are what is drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
COVERED = 0.95
Statistic = Callable[[NDArray[np.intp]], float]  # the figure of these rollouts; one may come twice


def interval(statistic: Statistic, rollouts: int, draws: int = DRAWS) -> tuple[float, float] | None:
    """The middle COVERED of what other draws of as many rollouts give; None for a single rollout, which tells nothing.

    Equal arguments give equal intervals.
    """
    if rollouts < 2:
        return None
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(rollouts, size=rollouts)) for _ in range(draws)]
    low, high = np.nanquantile(found, [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return float(low), float(high)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Interval of the mean of values [ticks, rollouts] or [rollouts]."""
    each = values.mean(0) if values.ndim == 2 else values
    return interval(lambda chosen: float(each[chosen].mean()), len(each))


def ratio_interval(made: NDArray[np.float64], real: NDArray[np.float64]) -> tuple[float, float] | None:
    """Interval of mean(made) / mean(real), both [ticks, rollouts], of the same rollouts."""
    tops, bottoms = made.mean(0), real.mean(0)
    return interval(lambda chosen: float(tops[chosen].mean() / max(bottoms[chosen].mean(), 1e-6)), len(tops))

"""Are these frames, as a crowd, like those? The Fréchet distance of their features, as in FID (arXiv:1706.08500)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Crowd:
    """Sums over the features of each rollout's frames, so that any rollouts' mean and covariance are quickly told."""

    counts: NDArray[np.float64]  # [rollouts]
    sums: NDArray[np.float64]  # [rollouts, features]
    products: NDArray[np.float64]  # [rollouts, features, features]

    @staticmethod
    def of(features: NDArray[np.float64]) -> Crowd:
        """features: [samples, rollouts, features]."""
        samples, rollouts, _ = features.shape
        by_rollout = features.swapaxes(0, 1)
        return Crowd(np.full(rollouts, float(samples)), by_rollout.sum(1), by_rollout.swapaxes(1, 2) @ by_rollout)

    def gaussian(self, chosen: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean [features] and covariance [features, features] of all frames of these rollouts."""
        count = self.counts[chosen].sum()
        mean = self.sums[chosen].sum(0) / count
        return mean, self.products[chosen].sum(0) / count - np.outer(mean, mean)


def frechet(real: Crowd, made: Crowd, chosen: NDArray[np.intp]) -> float:
    """Fréchet distance of the Gaussians of two crowds, per feature: the root of FID's sum over the number of features.

    0 is the same crowd; 1 is as far as one that lies a whole spread of real frames aside in every feature.
    """
    (mean_real, cov_real), (mean_made, cov_made) = real.gaussian(chosen), made.gaussian(chosen)
    values, vectors = np.linalg.eigh(cov_real)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    between = np.sqrt(np.linalg.eigvalsh(root @ cov_made @ root).clip(0)).sum()
    squared = np.square(mean_real - mean_made).sum() + np.trace(cov_real) + np.trace(cov_made) - 2 * between
    return float(np.sqrt(max(squared, 0.0) / len(mean_real)))

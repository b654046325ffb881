"""Does a world stay what it was? A long drive's frames beside the real drive's, stretch by stretch."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.train import measure
from worldmodel.train.evaluate_car import SAMPLED, Drive
from worldmodel.train.intervals import Statistic, interval
from worldmodel.train.judge.frechet import Crowd, frechet
from worldmodel.train.judge.hands import BEFORE, balanced_accuracy

BIN = 500  # ticks that drift is told for
WORSE = 1.5  # a player has collapsed where sharpness or contrast is this many times below its first ticks' …
LOST = 2.5  # … or this many times below the real game's
KEPT = 1.15  # a player is kept whose features are at most this many times as far from real ones in the end as at first
FRECHET_DRAWS = 100  # of a bootstrap; one takes about as long as all others together


def drift(real: Drive, made: Drive, ticks: int) -> dict[str, Any]:
    """How far the generated frames' statistics are from real ones, for each stretch of ticks; and collapsed players.

    distance_real, frechet_real: of the real frames of the same stretch, driven by the same driver, from other real
    frames. With a judge: frechet (of the eye's features), flow_ratio and keys, see docs/evaluation.md.
    """
    width = min(BIN, max(ticks // 4, SAMPLED)) // SAMPLED
    stretches = [slice(start, start + width) for start in range(0, len(made.features) - width + 1, width)]
    truth = real.features.reshape(-1, real.features.shape[-1])
    bins: list[dict[str, Any]] = []
    for stretch in stretches:
        distances = [
            measure.feature_distance(truth, game.features[stretch].reshape(-1, truth.shape[1])) for game in (made, real)
        ]
        bins.append(
            {
                "from": stretch.start * SAMPLED,
                "to": stretch.stop * SAMPLED,
                "distance": distances[0],
                "distance_real": distances[1],
                "sharpness_ratio": float(made.sharpness[stretch].mean() / real.sharpness[stretch].mean()),
                "contrast_ratio": float(made.contrast[stretch].mean() / real.contrast[stretch].mean()),
                "flow_ratio": float(made.flow[stretch].mean() / max(real.flow[stretch].mean(), 1e-6)),
            }
        )
    found = {
        "drift": bins,
        "drift_ratio": _worst(bins, "distance"),
        "drift_ratio_real": _worst(bins, "distance_real"),
        "collapsed": collapsed(made, real, width),
        "collapsed_real": collapsed(real, real, width),
    }
    if made.seen is None or real.seen is None:
        return found
    usual = real.seen.mean(0)  # colours are given: what counts is how a player's frames differ from its own scene's
    intervals = _add_frechet(bins, real.seen - usual, made.seen - usual, stretches)
    for name, game in (("keys_real", real), ("keys", made)):
        for entry in bins:
            entry[name] = keys_told(game, slice(entry["from"], entry["to"]))
    return found | {
        "frechet_ratio": _worst(bins, "frechet"),
        "frechet_ratio_real": _worst(bins, "frechet_real"),
        "frechet_end": bins[-1]["frechet"] / max(bins[0]["frechet"], 1e-6),
        "frechet_end_real": bins[-1]["frechet_real"] / max(bins[0]["frechet_real"], 1e-6),
        "frechet_kept": kept(real.seen, made.seen, stretches),
        "frechet_kept_real": kept(real.seen, real.seen, stretches),
        "intervals": intervals,
    }


def _worst(bins: list[dict[str, Any]], name: str) -> float:
    """The worst stretch over the first."""
    return float(max(stretch[name] for stretch in bins) / max(bins[0][name], 1e-6))


def _add_frechet(
    bins: list[dict[str, Any]], real: NDArray[np.float64], made: NDArray[np.float64], stretches: list[slice]
) -> dict[str, tuple[float, float] | None]:
    """Add the eye's distances to the stretches; returns the interval of the last one's over the first one's."""
    everyone = np.arange(real.shape[1])
    to_made: list[Statistic] = []
    for entry, stretch in zip(bins, stretches, strict=True):
        others, here, shown = _other(real, stretch), Crowd.of(real[stretch]), Crowd.of(made[stretch])
        to_made.append(partial(frechet, others, shown))
        entry["frechet"] = to_made[-1](everyone)
        entry["frechet_real"] = frechet(others, here, everyone)
        entry["frechet_interval"] = interval(to_made[-1], len(everyone), FRECHET_DRAWS)
    ends = interval(lambda chosen: to_made[-1](chosen) / max(to_made[0](chosen), 1e-6), len(everyone), FRECHET_DRAWS)
    return {"frechet_end": ends}


def _other(features: NDArray[np.float64], stretch: slice) -> Crowd:
    """The real frames of all other stretches: a stretch beside itself would seem nearer than it is."""
    elsewhere = np.ones(len(features), bool)
    elsewhere[stretch] = False
    return Crowd.of(features[elsewhere] if elsewhere.any() else features)


def kept(real: NDArray[np.float64], made: NDArray[np.float64], stretches: list[slice]) -> int:
    """Players whose last stretch is about as near to the real drive in their colours as their first one is."""
    count = 0
    for player in range(real.shape[1]):
        ends = [measure.feature_distance(real[:, player], made[s, player]) for s in (stretches[0], stretches[-1])]
        count += ends[1] <= KEPT * ends[0]
    return count


def keys_told(game: Drive, ticks: slice) -> float | None:
    """Balanced accuracy, mean of the keys, with which the hands tell what the driver held in these ticks."""
    if game.told is None:
        return None
    first = max(ticks.start - BEFORE, 0)
    said = game.told[first : ticks.stop - BEFORE]
    held = game.held[first + BEFORE : first + BEFORE + len(said)]
    right = balanced_accuracy(held, said)
    return float(np.nanmean(right)) if np.isfinite(right).any() else None


def collapsed(game: Drive, real: Drive, width: int) -> int:
    """Players that in some stretch have lost much of the sharpness or contrast of their first, or most of the real
    game's, whose colours are the same."""
    lost = np.zeros(game.sharpness.shape[1], bool)
    for made, true in ((game.sharpness, real.sharpness), (game.contrast, real.contrast)):
        least = np.maximum(made[:width].mean(0) / WORSE, true.mean(0) / LOST)
        for start in range(0, len(made) - width + 1, width):
            lost |= made[start : start + width].mean(0) < least
    return int(lost.sum())

"""How a generated road goes wrong, drawn on purpose: thin, wide, torn, off-colour, with curbs and squares amiss.

A world's own frames wear in ways that a recording never shows, and what it never saw it cannot mend. Recordings of
the same drives with a worn road (`worldloop record racer --worn`) are histories from which it learns to mend the road.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_APART = (12, 40)  # track points from one worn stretch to the next; a picture shows 14
_LONG = (3, 18)  # track points of a stretch
_TORN = 5  # at most where nothing is left: a road that leaves the picture is lost, not torn
_RAMP = 3.0  # track points over which a width changes
_KINDS = ("thin", "torn", "wide", "stained", "bare")
_OFTEN = (0.35, 0.25, 0.12, 0.18, 0.10)
_NOTHING = 0.05  # share of the road's width below which nothing is drawn
_STAIN = 28  # levels of a stain in each colour, at most
_SHARE = 0.3  # of the grass's squares that are amiss
_SHIFT = 4.0  # units that a corner of such a square is off, at most


class Wear:
    """The wear of one track.

    width: [points], share of the road's width. stain: [tiles, 3] levels. gone: [tiles] bool, not there at all.
    bare: [points] bool, curbs gone.
    """

    def __init__(self, rng: np.random.Generator, points: int) -> None:
        self.width, self.stain = np.ones(points), np.zeros((points, 3))
        self.bare = np.zeros(points, bool)
        self._salt = int(rng.integers(1, 2**31))
        at = int(rng.integers(_APART[0]))
        while at < points - 2 * _LONG[1]:  # the track's first points stay as they are, whole
            length = int(rng.integers(*_LONG))
            kind = rng.choice(_KINDS, p=_OFTEN)
            if kind == "torn":
                length = min(length, _TORN)
            inside = np.clip(1 + (length / 2 - np.abs(np.arange(points) - at - length / 2)) / _RAMP, 0, 1)
            if kind == "stained":
                self.stain += inside[:, None] * rng.uniform(-_STAIN, _STAIN, 3)
            elif kind != "bare":
                low, high = {"thin": (0.25, 0.8), "torn": (0.0, 0.0), "wide": (1.2, 1.9)}[str(kind)]
                self.width += inside * (rng.uniform(low, high) - self.width)
            self.bare |= (inside > 0) & (kind != "stained" or rng.random() < 0.5)
            at += length + int(rng.integers(*_APART))
        self.gone = (self.width < _NOTHING) & (np.roll(self.width, 1) < _NOTHING)

    def tiles(self, tiles: NDArray[np.float64]) -> NDArray[np.float64]:
        """The road's tiles [tiles, 4, (x, y)]: left and right of a track point, right and left of the one before."""
        here, before = self.width[:, None, None], np.roll(self.width, 1)[:, None, None]
        ends = tiles[:, [0, 1]], tiles[:, [3, 2]]
        (left, right), (left_before, right_before) = (
            np.moveaxis(end.mean(1, keepdims=True) * (1 - width) + end * width, 1, 0)
            for end, width in zip(ends, (here, before), strict=True)
        )
        return np.stack([left, right, right_before, left_before], 1)

    def curbs(self, curbs: NDArray[np.float64], tiles: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the curbs [curbs, 4, (x, y)] are still there."""
        if not len(curbs):
            return np.zeros(0, bool)
        away = curbs.mean(1)[:, None] - tiles.mean(1)
        nearest: NDArray[np.intp] = np.einsum("ctx,ctx->ct", away, away).argmin(1)
        return ~self.bare[nearest]

    def patches(self, patches: NDArray[np.float64]) -> NDArray[np.float64]:
        """The grass's squares [patches, 4, (x, y)], some of them gone and some out of shape, always the same ones."""
        corner = np.round(patches[:, 0]).astype(np.int64)
        chance = _hash(corner[:, 0], corner[:, 1], self._salt)
        amiss = patches[chance < _SHARE]
        x, y = np.moveaxis(np.round(amiss).astype(np.int64), -1, 0)  # [patches, 4]
        shift = np.stack([_hash(x, y, self._salt + 1), _hash(x, y, self._salt + 2)], -1) - 0.5
        return np.concatenate([patches[chance >= 1.5 * _SHARE], amiss + 2 * _SHIFT * shift])


def _hash(x: NDArray[np.int64], y: NDArray[np.int64], salt: int) -> NDArray[np.float64]:
    """Numbers from 0 to 1 that look random and belong to a place."""
    mixed = (x * 73856093) ^ (y * 19349663) ^ (salt * 83492791)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed ^ (mixed >> 16)) & 0xFFFF) / 0xFFFF

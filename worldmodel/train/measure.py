"""What a car world's frames show, judged from pixels alone, so that real and generated frames are judged alike.

Motion is told in pixels of a frame of 128 × 128, whatever the frame's size. The camera stands as car_racing.py has it:
the car in the middle, a quarter from the bottom, its heading up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.train.envs.captions import Rgb, lab, patch_colour

Picture = NDArray[np.uint8]  # [height, width, 3]

SIZE = 128
GRID = 64  # height and width of a road mask
CAR = (GRID * 0.5 - 0.5, GRID * 0.75 - 0.5)  # where the car is in a road mask
UNITS_PER_PIXEL = 50 / SIZE  # CarRacing's length units
_STANDSTILL = 0.25  # pixels a tick; less is no motion

# -- motion -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Motion:
    """How the car moved from one frame to the next."""

    rotation: float  # radians, to the left positive
    forward: float  # pixels
    sideways: float  # pixels, to the right positive
    explained: float  # share of the two frames' difference that this motion explains, at most 1

    @property
    def stalled(self) -> bool:
        """Whether nothing moves."""
        reach = 40.0  # pixels from the car at which a turn is seen
        return math.hypot(self.forward, self.sideways) + reach * abs(self.rotation) < _STANDSTILL


def motion(before: Picture, after: Picture, last: Motion | None = None) -> Motion:
    """Find the car's motion by aligning the two frames: a coarse search, then Gauss-Newton steps at two sizes.

    last: the motion of the frame before, if it is known: then the search is a short one about it.
    """
    found = np.zeros(3)  # rotation, forward, sideways
    coarse, fine = SIZE // 4, SIZE // 2
    pair = _shrunk(before, coarse), _shrunk(after, coarse)
    best = _misfit(*pair, found)
    turns = np.arange(-0.15, 0.151, 0.025) if last is None else last.rotation + np.array([-0.03, 0.0, 0.03])
    for rotation in turns:
        for forward in (0.0, 1.0, 2.5, 4.0, 6.0) if last is None else (last.forward,):
            error = _misfit(*pair, np.array([rotation, forward, 0.0]))
            if error < 0.98 * best:
                best, found = error, np.array([rotation, forward, 0.0])
    for size, steps in ((coarse, 4), (fine, 6)):
        pair = _shrunk(before, size), _shrunk(after, size)
        for _ in range(steps):
            before_step, found = found, _improved(*pair, found)
            if np.abs(found - before_step).max() < 2e-3:
                break
    still, moved = _misfit(*pair, np.zeros(3)), _misfit(*pair, found)
    if moved > still:
        return Motion(0.0, 0.0, 0.0, 0.0)
    rotation, forward, sideways = (float(part) for part in found)
    return Motion(rotation, forward, sideways, explained=1 - moved / still if still > 0 else 0.0)


def _shrunk(picture: Picture, size: int) -> NDArray[np.float32]:
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 0.8), np.float32)


def _misfit(before: NDArray[np.float32], after: NDArray[np.float32], found: NDArray[np.float64]) -> float:
    warped, seen = _warped(before, found)
    return float(np.mean(np.abs(warped - after)[seen]))


def _improved(
    before: NDArray[np.float32], after: NDArray[np.float32], found: NDArray[np.float64]
) -> NDArray[np.float64]:
    size = len(before)
    scale = np.float32(size / SIZE)
    warped, seen = _warped(before, found)
    right, down = _from_car(size)
    gx = cv2.Scharr(warped, cv2.CV_32F, 1, 0, scale=1 / 32)
    gy = cv2.Scharr(warped, cv2.CV_32F, 0, 1, scale=1 / 32)
    turn = gx * down[..., None] - gy * right[..., None]
    slopes = np.stack([turn.ravel(), -scale * gy.ravel(), scale * gx.ravel()])
    residual = warped - after
    weight = seen[..., None] / np.maximum(np.abs(residual), np.float32(8))  # large ones came into view: no motion
    weighted = slopes * weight.ravel()
    normal = (weighted @ slopes.T).astype(np.float64) + np.diag([1e-3, 1e-4, 1e-2]) * residual.size
    step = np.linalg.solve(normal, (weighted @ residual.ravel()).astype(np.float64))
    return found - np.clip(step, [-0.05, -1.5, -1.0], [0.05, 1.5, 1.0])


def _warped(before: NDArray[np.float32], found: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What `before` would look like after the motion, and which of its pixels are known and not the car's."""
    size = len(before)
    rotation, forward, sideways = found
    scale = size / SIZE
    cos, sin = math.cos(rotation), math.sin(rotation)
    x, y = _car(size)
    turn = np.array([[cos, sin], [-sin, cos]])
    shift = np.array([x, y]) - turn @ (x, y) + np.array([sideways, -forward]) * scale
    matrix = np.hstack([turn, shift[:, None]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpAffine(before, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    known = cv2.warpAffine(np.ones((size, size), np.uint8), matrix, (size, size), flags=flags)
    return np.asarray(warped, np.float32), (known > 0) & _not_car(size)


def _car(size: int) -> tuple[float, float]:
    return size * 0.5 - 0.5, size * 0.75 - 0.5


@cache
def _from_car(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixels to the right of the car, and below it, at every pixel of a frame of `size`."""
    x, y = _car(size)
    down, right = np.mgrid[:size, :size].astype(np.float32)
    return right - np.float32(x), down - np.float32(y)


@cache
def _not_car(size: int) -> NDArray[np.bool_]:
    right, down = _from_car(size)
    return np.asarray((np.abs(right) > size * 5 / SIZE) | (np.abs(down) > size * 9 / SIZE))


# -- colours ----------------------------------------------------------------------------------------------------------


def colours(picture: Picture) -> list[tuple[NDArray[np.float64], float]]:
    """The picture's flat colours: (CIE Lab, share of its pixels), the commonest first."""
    small = cv2.resize(picture, (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    pixels = lab(np.asarray(small, np.float64)).reshape(-1, 3)
    bins = np.floor(pixels / 5).astype(int) @ (10_000, 100, 1)  # a, b within ±128: no two bins share a number
    total, left = len(pixels), np.ones(len(pixels), bool)
    found: list[tuple[NDArray[np.float64], float]] = []
    while left.sum() > 0.02 * total and len(found) < 6:
        values, counts = np.unique(bins[left], return_counts=True)
        centre = pixels[left & (bins == values[counts.argmax()])].mean(0)
        for _ in range(3):
            near = left & (np.linalg.norm(pixels - centre, axis=1) < 6)
            if not near.any():
                break
            centre = np.median(pixels[near], axis=0)
        near = left & (np.linalg.norm(pixels - centre, axis=1) < 6)
        found.append((centre, float(near.sum() / total)))
        left &= ~near
        if not near.any():
            break
    return sorted((colour for colour in found if colour[1] > 0.02), key=lambda colour: -colour[1])


def colour_errors(picture: Picture, road: Rgb, grass: Rgb) -> tuple[float, float]:
    """CIE76 distance from the wanted road and grass colours to the nearest flat colours that the picture shows."""
    seen = np.array([colour for colour, _ in colours(picture)])
    if not len(seen):
        return math.inf, math.inf
    errors = [float(np.linalg.norm(seen - lab(wanted), axis=1).min()) for wanted in (road, grass)]
    return errors[0], errors[1]


def road_mask(picture: Picture, road: Rgb, grass: Rgb) -> NDArray[np.bool_]:
    """Which cells, bool [GRID, GRID], look like road rather than like grass, its patches or curbs."""
    small = cv2.resize(picture, (GRID, GRID), interpolation=cv2.INTER_AREA)
    candidates = lab(np.array([road, grass, patch_colour(grass), (255, 255, 255), (255, 0, 0)]))
    candidates = candidates[[0, 1, 2, *(i for i in (3, 4) if np.linalg.norm(candidates[i] - candidates[0]) > 30)]]
    pixels = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    distances = np.stack([np.square(pixels - c.astype(np.float32)).sum(-1) for c in candidates])
    return np.asarray(distances.argmin(0) == 0)


def on_road(road: NDArray[np.bool_]) -> float:
    """Share of road around the car in a road mask."""
    right, down = _from_car(GRID)
    around = (np.abs(right) < GRID / 16) & (np.abs(down) < GRID / 12) & _not_car(GRID)
    return float(road[around].mean())


# -- is it still a picture of that game? -----------------------------------------------------------------------------


def sharpness(picture: Picture) -> float:
    """Mean absolute second difference: falls when edges smear, rises with noise."""
    return float(np.abs(cv2.Laplacian(picture.astype(np.float32), cv2.CV_32F)).mean())


def contrast(picture: Picture) -> float:
    """Standard deviation of the picture's lightness, 0 to 100."""
    return float(cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[..., 0].std())


def psnr(real: NDArray[np.uint8], made: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio in dB, errors of all pixels pooled. Any equal shapes."""
    error = np.mean(np.square(real.astype(np.float32) - made.astype(np.float32)), dtype=np.float64)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def features(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Statistics of a small filter bank over frames [n, height, width, 3]: float64 [n, features].

    Histograms of gradient orientation in a 4 × 4 grid at three scales: they see structure (a road's edges, where they
    lie and how sharp they are) and little of colour, which is scored by itself.
    """
    return np.stack([_gradient_histograms(picture) for picture in pictures])


def _gradient_histograms(picture: Picture) -> NDArray[np.float64]:
    small = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    tone = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    parts = []
    for _ in range(3):
        gx, gy = (cv2.Scharr(tone, cv2.CV_32F, *axis, scale=1 / 32) for axis in ((1, 0), (0, 1)))
        strength = np.hypot(gx, gy)
        strongest = strength.argmax(-1)[..., None]
        gx, gy, strength = (np.take_along_axis(part, strongest, -1)[..., 0] for part in (gx, gy, strength))
        kind = np.floor(np.mod(np.arctan2(gy, gx), np.pi) / np.pi * 6).astype(int) % 6
        side = len(tone) // 4
        cell = (np.arange(len(tone)) // side)[:, None] * 4 + np.arange(len(tone)) // side
        parts.append(np.bincount((cell * 6 + kind).ravel(), np.log1p(strength).ravel(), 96) / side**2)
        tone = cv2.pyrDown(tone)
    return np.concatenate(parts)


def feature_distance(real: NDArray[np.float64], made: NDArray[np.float64]) -> float:
    """Fréchet distance between Gaussians with diagonal covariance over features, each in units of the real spread."""
    spread = real.std(0) + 0.05 * real.std()
    mean = (real.mean(0) - made.mean(0)) / spread
    width = (real.std(0) - made.std(0)) / spread
    return float(np.sqrt(np.mean(mean**2 + width**2)))

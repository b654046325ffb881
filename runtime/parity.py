"""Two players of one game: how far a backend's frames and state are from those of the torch reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.session import Session
from runtime.world import World

TICKS = 50
TOLERANCE = 1e-3  # relative error of a state tensor, float32 against float32
PSNR_FLOOR = 30.0  # dB, of the whole future in another precision


@dataclass(frozen=True)
class Difference:
    """errors: state tensor → the largest error of any tick, relative to the tensor's size over all ticks (what is one
    number, such as a reward, may be next to nothing in some tick). psnr: of every tick's frame, in dB.
    """

    errors: dict[str, float]
    psnr: list[float]

    @property
    def worst(self) -> float:
        return float(np.max(list(self.errors.values())))  # NaN, if any is


def compare(reference: Session, other: Session, ticks: int = TICKS) -> Difference:
    """Play both on their own states with the same keys, a fixed pattern, by the steady graph."""
    return compare_all(reference, [other], ticks)[0]


def compare_all(reference: Session, others: Sequence[Session], ticks: int = TICKS) -> list[Difference]:
    """The same with several others; the reference, which is slow, plays once."""
    sizes: dict[str, list[float]] = {}
    largest: list[dict[str, float]] = [{} for _ in others]
    psnr: list[list[float]] = [[] for _ in others]
    for tick in range(ticks):
        actions = pattern(reference.world.manifest.action_names, tick)
        frame, state = reference.tick(actions, graph="tick"), reference.peek()
        for name, expected in state.items():
            sizes.setdefault(name, []).append(mean_square(expected))
        for other, errors, frames in zip(others, largest, psnr, strict=True):
            frames.append(psnr_of(frame, other.tick(actions, graph="tick")))
            for name, expected in state.items():
                error = mean_square(other.peek()[name], expected)
                errors[name] = float(np.maximum(errors.get(name, 0.0), error))  # of max() NaN would be lost
    size = {name: sum(found) / ticks or 1.0 for name, found in sizes.items()}
    return [
        Difference({name: math.sqrt(error / size[name]) for name, error in errors.items()}, frames)
        for errors, frames in zip(largest, psnr, strict=True)
    ]


def pattern(names: tuple[str, ...], tick: int) -> set[str]:
    """Keys held for different spans, so that all combinations come."""
    return {name for i, name in enumerate(names) if tick // (3 + 2 * i) % 2}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of what is expected."""
    return math.sqrt(mean_square(found, expected) / (mean_square(expected) or 1.0))


def mean_square(found: np.ndarray, expected: np.ndarray | float = 0.0) -> float:
    """Of the difference; either may lie on a GPU."""
    return float(np.square(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).mean())


def psnr_of(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures, in dB; equal ones: 99."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))


def check_world(name: str, backend: str, ticks: int = TICKS) -> dict[str, Any]:
    """A world's graphs on a backend against torch float32 with the same weights; one case of `worldloop parity`."""
    world = World.open(name)
    reference, other = Session(world, backend="torch"), Session(world, backend=backend)
    found = compare(reference, other, ticks)
    exact = other.backend.precision == "fp32"
    psnr = sum(found.psnr) / len(found.psnr)
    return {
        "name": world.manifest.name,
        "kind": f"{other.backend.name} {other.backend.precision}",
        "ok": found.worst <= TOLERANCE if exact else psnr >= PSNR_FLOOR,
        "tolerance": TOLERANCE if exact else PSNR_FLOOR,
        "outputs": found.errors,
        "psnr": round(psnr, 2),
    }

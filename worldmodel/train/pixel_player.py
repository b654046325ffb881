"""The driver that sees only the picture, playing: it drives along, and now and then does what players do.

As it needs no state of the environment, it plays the real game and a generated one alike. So real and generated drives
of any length can be compared that differ in the world alone (adversarial.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worldmodel.train.envs import Frame, Keys
from worldmodel.train.envs.captions import Rgb
from worldmodel.train.pixel_driver import CRUISE, PixelDriver

_LEFT, _RIGHT, _GAS, _BRAKE = range(4)
_CALM = 60  # ticks between moves, on average


class PixelPlayer:
    """Call it once a tick with the newest frame for the keys [left, right, gas, brake]."""

    def __init__(self, road: Rgb, grass: Rgb, rng: np.random.Generator) -> None:
        self._rng = rng
        self._driver = PixelDriver(road, grass)
        self._moves = self._all_moves()

    def repainted(self, road: Rgb, grass: Rgb) -> None:
        """Road and ground have these colours from now on."""
        self._driver.colours = road, grass

    def __call__(self, frame: Frame) -> Keys:
        self._along = self._driver(frame)
        return next(self._moves)

    def _all_moves(self) -> Iterator[Keys]:
        rng = self._rng
        while True:
            self._driver.cruise = CRUISE * float(rng.uniform(0.6, 1.6))
            yield from self._follow(int(rng.exponential(_CALM)))
            move = rng.choice(list(_MOVES), p=list(_MOVES.values()))
            yield from getattr(self, f"_{move}")()

    def _follow(self, ticks: int) -> Iterator[Keys]:
        for _ in range(ticks):
            yield self._along

    def _random_keys(self) -> Iterator[Keys]:
        for _ in range(int(self._rng.integers(1, 4))):
            keys = self._rng.random(4) < (0.35, 0.35, 0.5, 0.12)
            yield from self._hold(keys, int(self._rng.integers(3, 14)))

    def _long_turn(self) -> Iterator[Keys]:
        left, gas = self._rng.random(2) < 0.5
        yield from self._hold(np.array([left, not left, gas, False]), int(self._rng.integers(15, 40)))

    def _coast(self) -> Iterator[Keys]:
        """Feet off, steering on or, half of the time, off too."""
        steering = bool(self._rng.random() < 0.5)
        for _ in range(int(self._rng.integers(15, 150))):
            yield self._steered(steering)

    def _stop(self) -> Iterator[Keys]:
        """Brake, steering along the road, then wait."""
        for _ in range(int(self._rng.integers(20, 60))):
            yield self._steered(True, _BRAKE)
        yield from self._hold(np.zeros(4, bool), int(self._rng.integers(5, 60)))

    def _full_gas(self) -> Iterator[Keys]:
        for _ in range(int(self._rng.integers(20, 50))):
            yield self._steered(True, _GAS)

    def _steered(self, steering: bool, *pedals: int) -> Keys:
        keys = np.zeros(4, bool)
        if steering:
            keys[[_LEFT, _RIGHT]] = self._along[[_LEFT, _RIGHT]]
        keys[list(pedals)] = True
        return keys

    def _hold(self, keys: Keys, ticks: int) -> Iterator[Keys]:
        for _ in range(ticks):
            yield keys


_MOVES = {"random_keys": 0.3, "long_turn": 0.1, "coast": 0.25, "stop": 0.2, "full_gas": 0.15}

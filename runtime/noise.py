"""Noise is an input of the tick: any tick's noise can be made again, alone, from the seed and the tick's number."""

from __future__ import annotations

import numpy as np


def tick_noise(seed: int, tick: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of one tick, float32."""
    # The tick goes in the highest counter word: in the lowest, neighbouring ticks would share most of their numbers.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, tick])).standard_normal(shape, np.float32)

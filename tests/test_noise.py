"""Noise is a function of seed and tick."""

from __future__ import annotations

import numpy as np

from runtime.noise import tick_noise


def test_any_ticks_noise_can_be_made_again_alone():
    run = [tick_noise(3, tick, (2, 5)) for tick in range(10)]
    assert np.array_equal(run[7], tick_noise(3, 7, (2, 5)))


def test_noise_is_standard_normal_float32():
    noise = tick_noise(0, 0, (200, 500))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01


def test_neighbouring_ticks_and_seeds_share_no_numbers():
    noises = [tick_noise(seed, tick, (500,)) for seed in (0, 1, (1 << 63) - 1) for tick in (0, 1, 2, 10**9)]
    assert len(np.unique(np.concatenate(noises))) > 0.999 * 500 * len(noises)


def test_noise_is_the_same_on_every_machine():
    """Philox is defined bit by bit; a change here would make every replay ever recorded play another game."""
    assert tick_noise(42, 1000, (3,)).tobytes().hex() == "2ad2953f3af0ffbf3559903f"

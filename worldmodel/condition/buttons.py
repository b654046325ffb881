"""Buttons: what a player can press, and the numbers that it sets in what a world is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Button:
    """Something a player can press: it sets one number of the action vector."""

    name: str
    keys: tuple[str, ...]  # that press it by default
    index: int
    value: float = 1.0


def numbers(buttons: Sequence[Button], pressed: Tensor, count: int) -> Tensor:
    """Action vectors [..., count] of pressed buttons [..., buttons], 0 or 1."""
    effect = [[button.value * (button.index == index) for index in range(count)] for button in buttons]
    return pressed @ torch.tensor(effect, dtype=pressed.dtype, device=pressed.device).reshape(len(buttons), count)

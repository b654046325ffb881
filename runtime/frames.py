"""Frames as other libraries want them, without copying: pygame surfaces, DLPack (torch, jax, cupy, …)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pygame


def as_surface(frame: np.ndarray) -> pygame.Surface:
    """A pygame surface that shows the frame's own memory; frame: uint8 [height, width, 3]."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    height, width, _ = frame.shape
    return pygame.image.frombuffer(np.ascontiguousarray(frame).data, (width, height), "RGB")


def as_dlpack(frame: np.ndarray) -> Any:
    """A DLPack capsule of the frame's own memory, uint8 [height, width, 3] on the CPU.

    Libraries that take objects rather than capsules take the frame itself: torch.from_dlpack(frame).
    """
    return frame.__dlpack__()

"""From real frames to the state of a world: how an evaluation, or a picture of one's own, begins a game."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.condition.native import controls
from worldmodel.spec import WorldSpec
from worldmodel.tick import State, World, start


def context_frames(spec: WorldSpec) -> int:
    """Frames that `begin` wants: the sink, the window, the one just shown, and those whose actions come before them."""
    return spec.window + 1 + spec.generator.action_history


def begin(world: World, frames: Tensor, actions: Tensor) -> State:
    """The state of a world that has just shown the last of `frames`; call `recache` on it before the first tick.

    frames: uint8 [players, context_frames, height, width, 3]. actions: float32 [players, context_frames, buttons],
    what led to each.
    """
    history, kept = world.spec.generator.action_history, world.spec.window + 2
    players, count = frames.shape[:2]
    pictures = frames[:, -kept:].flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    latents = world.codec.encode(pictures).unflatten(0, (players, kept)).float()
    actions = controls(world.spec, actions)
    told = torch.stack([actions[:, i + 1 - history : i + 1] for i in range(count - kept, count)], 1)
    return start(world, latents, told)

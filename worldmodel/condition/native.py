"""All that a player of a native world can press, and what that tells the next frame.

First the game's own keys, then the buttons of each condition that the world knows: BESIDE has them all, in order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.condition import camera_motion, drag
from worldmodel.condition.buttons import Button
from worldmodel.spec import WorldSpec

BESIDE: dict[str, tuple[Button, ...]] = {"camera": camera_motion.BUTTONS, "tracks": drag.BUTTONS}  # by field of a spec


def buttons(spec: WorldSpec) -> dict[Button, str | None]:
    """All that a player of this world can press, and the condition that each leads: None for the game's own keys."""
    keys = [Button(name, tuple(spec.keys.get(name, ())), index) for index, name in enumerate(spec.actions)]
    found: dict[Button, str | None] = dict.fromkeys(keys)
    return found | {button: name for name in _known(spec) for button in BESIDE[name]}


def controls(spec: WorldSpec, pressed: Tensor) -> Tensor:
    """What a frame's condition vector is told of a tick in which these buttons are pressed, [..., spec.controls].

    pressed: [..., buttons], 0 or 1; or of the game's own keys alone.
    """
    keys = len(spec.actions)
    if not _known(spec):
        return pressed
    if spec.camera is None:
        return pressed[..., :keys]
    return torch.cat([pressed[..., :keys], camera_motion.told(presses_of("camera", spec, pressed))], -1)


def presses_of(condition: str, spec: WorldSpec, pressed: Tensor) -> Tensor:
    """Of `pressed`, see `controls`, what leads this condition: [..., its buttons]."""
    keys, counts = len(spec.actions), [len(BESIDE[name]) for name in _known(spec)]
    if pressed.shape[-1] == keys:
        pressed = F.pad(pressed, (0, sum(counts)))
    return pressed[..., keys:].split(counts, -1)[_known(spec).index(condition)]


def _known(spec: WorldSpec) -> list[str]:
    return [name for name in BESIDE if getattr(spec, name) is not None]

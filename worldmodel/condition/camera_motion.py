"""The camera's own motion as a condition of native worlds: what it did in the tick that led to a frame.

Beside the keys a frame is then told four numbers: whether the camera is led, and how far it went ahead, to the right,
and turned to the right, in the units of `CameraSpec`. Zeros say that nobody leads it: it goes where the keys take it.
As in families with a camera (minwm.py), the player leads it by buttons, which replays, actions files and hosts hold as
they hold any other; strengths add up, so that any path can be followed to an eighth of a unit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.condition.buttons import Button, numbers
from worldmodel.spec import CameraSpec, WorldSpec

DIRECTIONS: dict[str, tuple[int, float, str]] = {  # place among the numbers, sign, default key
    "camera_ahead": (1, 1.0, "i"),
    "camera_back": (1, -1.0, "k"),
    "camera_slide_right": (2, 1.0, "o"),
    "camera_slide_left": (2, -1.0, "u"),
    "camera_right": (3, 1.0, "l"),
    "camera_left": (3, -1.0, "j"),
}
STRENGTHS = {"": 8, "_half": 4, "_quarter": 2, "_eighth": 1}  # in eighths
STILL = "camera_still"  # led, and not moved

BUTTONS = (
    Button(STILL, (), 0),
    *(
        Button(name + strength, () if strength else (key,), place, sign * eighths / 8)
        for name, (place, sign, key) in DIRECTIONS.items()
        for strength, eighths in STRENGTHS.items()
    ),
)


def told(pressed: Tensor) -> Tensor:
    """What a frame is told of its camera, [..., NUMBERS]. pressed: [..., buttons], 0 or 1, of BUTTONS."""
    led = (pressed.amax(-1, keepdim=True) > 0).to(pressed.dtype)
    return torch.cat([led, numbers(BUTTONS, pressed, CameraSpec.NUMBERS)[..., 1:]], -1)


def widened(spec: WorldSpec, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a generator that knew no camera for one that does: at first what it is told of it weighs nothing."""
    name, history, keys = "actions.0.weight", spec.generator.action_history, len(spec.actions)
    if spec.camera is None or name not in weights or weights[name].shape[1] != history * keys:
        return weights
    by_tick = weights[name].unflatten(1, (history, keys))
    return weights | {name: F.pad(by_tick, (0, CameraSpec.NUMBERS)).flatten(1)}


def leading(spec: CameraSpec, ahead: float, right: float, turn: float) -> set[str]:
    """The buttons that lead the camera this way in a tick, as nearly as can be: units of length, and radians."""
    found = {STILL}
    for place, amount in enumerate((ahead / spec.move, right / spec.move, turn / spec.turn), 1):
        eighths = min(round(abs(amount) * 8), sum(STRENGTHS.values()))
        for name, (at, sign, _) in DIRECTIONS.items():
            if at == place and sign * amount > 0:
                found |= {name + strength for strength, value in STRENGTHS.items() if eighths & value}
    return found

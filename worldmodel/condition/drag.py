"""Motion tracks as a condition of native worlds: where a few points of the picture went in the tick before a frame.

The frame that is made is told a map over its latent cells: whether a point is led there, and how far it came, down and
to the right, in units of `DragSpec`. Zeros say that nobody leads anything there, and a map of zeros leaves the world to
its keys. Frames that are history are told no map: they show where things went.

The player drags points with the pen of the families that know tracks (tracks.py): what is let go of stays in its place
until `let_go`. A point follows the pen no faster than what the world has learned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.condition.buttons import Button, numbers
from worldmodel.condition.tracks import PEN, TRACKS, drawn, pen_of
from worldmodel.spec import DragSpec, WorldSpec

State = dict[str, Tensor]
LET_GO = "let_go"  # all points
BUTTONS = (*PEN, Button(LET_GO, ("mouse:right",), 3))


def state_shapes() -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What is remembered of the points, of one player: where they are within 0..1, which there are, which is held."""
    return {
        "tracks.places": ((1, TRACKS, 2), torch.float32),
        "tracks.seen": ((1, TRACKS), torch.bool),
        "tracks.held": ((1,), torch.int64),
    }


def dragged(spec: WorldSpec, state: State, pressed: Tensor) -> tuple[Tensor, State]:
    """What the next frame is told, [batch, NUMBERS, rows, columns], and the part of the state that knows the points.

    pressed: [batch, buttons], 0 or 1, of BUTTONS.
    """
    assert spec.tracks is not None, "the caller knows that this world has tracks"
    said = numbers(BUTTONS, pressed, 4)
    before, held = state["tracks.places"], state["tracks.held"]
    wanted, seen, now = drawn(before, state["tracks.seen"], held, pen_of(said[:, :3]))
    at = torch.arange(1, TRACKS + 1, device=now.device)
    followed = state["tracks.seen"] & ((at != now[:, None]) | (now == held)[:, None])  # not just taken up
    size = torch.tensor([spec.width, spec.height], device=now.device) / spec.tracks.pixels  # units along each side
    moved = torch.where(followed[..., None], ((wanted - before) * size).clamp(-1, 1), 0.0)
    places = torch.where(followed[..., None], before + moved / size, wanted)
    seen = seen & (said[:, 3:] <= 0)
    after = {"tracks.places": places, "tracks.seen": seen, "tracks.held": now * seen.any(1)}
    return led_map(spec, places, moved, seen), after


def led_map(spec: WorldSpec, places: Tensor, moved: Tensor, seen: Tensor) -> Tensor:
    """Points as a map [batch, NUMBERS, rows, columns]; those of one cell are told as their mean.

    places, moved: [batch, tracks, 2], x and y within 0..1, and in units of `DragSpec`. seen: bool [batch, tracks].
    """
    _, rows, columns = spec.latent_shape
    x, y = (places * torch.tensor([spec.width, spec.height], device=places.device) / spec.codec.down).unbind(-1)
    there = seen[..., None].to(moved)
    row, column = (
        (at.floor().long().clamp(0, count - 1)[..., None] == torch.arange(count, device=at.device)).to(moved)
        for at, count in ((y, rows), (x, columns))
    )
    told = torch.cat([there, moved.flip(-1) * there], -1)  # [batch, tracks, NUMBERS]
    by_row = (told[..., None] * row[:, :, None]).flatten(2)  # [batch, tracks, NUMBERS · rows]
    summed = (by_row.transpose(1, 2) @ column).unflatten(1, (DragSpec.NUMBERS, rows))
    return summed / summed[:, :1].clamp(min=1)

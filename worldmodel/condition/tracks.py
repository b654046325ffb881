"""2-D motion tracks: points that the player drags over the picture, as channels beside the latents (MotionStream).

Every track has a number; where it is in a frame, the map holds that number's sinusoidal vector, spread over the nearest
cells. arXiv:2511.01266 describes the scheme; how its weights shape it is not published, so a world has to be trained
for it (families/motion_stream.py plays one).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.condition.buttons import Button
from worldmodel.errors import SpecError

REACH = 0.05  # how near a track must be to be taken up, of the picture's sides
TRACKS = 16  # that can be drawn at a time
POINTER_STEPS = 128  # places of the pointer along a side, each a sum of buttons that are a power of two

# The pen, and the pointer's place as binary digits: what a replay and an actions file hold of a drawing.
PEN = (
    Button("draw", ("mouse:left",), 0),
    *(
        Button(f"{axis}{POINTER_STEPS >> bit}", (f"pointer:{axis}{POINTER_STEPS >> bit}",), place, 0.5**bit)
        for place, axis in enumerate("xy", 1)
        for bit in range(1, POINTER_STEPS.bit_length())
    ),
)


@dataclass(frozen=True)
class TrackSpec:
    """Sizes of the track head."""

    channels: int  # of a track map
    out: int  # beside the latents
    growth: int = 4  # pictures whose maps become one latent frame


def track_map(points: Tensor, visible: Tensor, channels: int, rows: int, columns: int) -> Tensor:
    """Maps [batch, frames, channels, rows, columns] of where every track is.

    points: [batch, frames, tracks, 2], x and y within 0..1 of the picture. visible: [batch, frames, tracks] bool.
    """
    if channels % 2:
        raise SpecError(f"track maps need an even number of channels: got {channels}")
    batch, frames, tracks, _ = points.shape
    names = identity(tracks, channels).to(points)  # [tracks, channels]
    x = (points[..., 0] * columns - 0.5).clamp(0, columns - 1)
    y = (points[..., 1] * rows - 0.5).clamp(0, rows - 1)
    inside = visible & (points >= 0).all(-1) & (points <= 1).all(-1)
    flat = points.new_zeros(batch, frames, rows * columns, channels)
    for down in (0, 1):
        for right in (0, 1):
            row, column = (y.floor() + down).clamp(max=rows - 1), (x.floor() + right).clamp(max=columns - 1)
            share = (1 - (y - y.floor() - down).abs()) * (1 - (x - x.floor() - right).abs())
            value = (share * inside)[..., None] * names  # [batch, frames, tracks, channels]
            cell = (row * columns + column).long()[..., None].expand(-1, -1, -1, channels)
            flat.scatter_add_(2, cell, value)
    return flat.transpose(2, 3).unflatten(-1, (rows, columns))


def identity(tracks: int, channels: int) -> Tensor:
    """Sinusoidal vectors that tell tracks apart: [tracks, channels] float32."""
    speed = torch.pow(10000, -torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
    angle = torch.arange(1, tracks + 1, dtype=torch.float64)[:, None] * speed
    return torch.cat([angle.sin(), angle.cos()], -1).float()


class TrackHead(nn.Module):
    """Track maps of pictures to channels of latent frames: `growth` pictures become one latent frame."""

    def __init__(self, channels: int, out: int, growth: int = 4) -> None:
        super().__init__()
        self.growth = growth
        self.mix = nn.Sequential(nn.Conv2d(channels * growth, out, 3, padding=1), nn.SiLU(), nn.Conv2d(out, out, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """[batch, frames · growth, channels, rows, columns] to [batch, frames, out, rows, columns]."""
        batch, pictures = maps.shape[:2]
        grouped = maps.reshape(batch * pictures // self.growth, -1, *maps.shape[-2:])
        return self.mix(grouped).unflatten(0, (batch, -1))


def pen_of(numbers: Tensor) -> Tensor:
    """The pen, see `drawn`, as the numbers [batch, 3] that PEN sets have it: the pointer is amid its step."""
    return numbers.float() + torch.tensor([0, 0.5, 0.5], device=numbers.device) / POINTER_STEPS


def drawing(x: float, y: float) -> set[str]:
    """The buttons that hold the pen down at this place, within 0..1 of the picture, as nearly as can be."""
    found = {"draw"}
    for axis, place in (("x", x), ("y", y)):
        step = min(max(int(place * POINTER_STEPS), 0), POINTER_STEPS - 1)
        found |= {f"{axis}{1 << bit}" for bit in range(POINTER_STEPS.bit_length() - 1) if step >> bit & 1}
    return found


def drawn(places: Tensor, seen: Tensor, held: Tensor, pen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tracks one picture later: where they are, which there are, and which the pen holds.

    places: [batch, tracks, 2], x and y within 0..1. seen: bool [batch, tracks]. held: int64 [batch], 0 for none, else
    the track's number from 1. pen: [batch, 3], above 0 while it is down, and its x and y. The pen takes up a track that
    is near, begins one where none is, and takes the nearest when all are in use; what it lets go of stays there.
    """
    tracks = places.shape[1]
    down, place = pen[:, 0] > 0, pen[:, None, 1:].to(places)
    distance, nearest = (places - place).abs().sum(-1).masked_fill(~seen, float("inf")).min(1)
    begun = seen.sum(1)
    taken = torch.where((distance <= REACH) | (begun == tracks), nearest, begun.clamp(max=tracks - 1)) + 1
    held = torch.where(held > 0, held, taken) * down
    under = nn.functional.one_hot(held, tracks + 1)[:, 1:].bool()
    return torch.where(under[..., None], place, places), seen | under, held

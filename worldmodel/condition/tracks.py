"""2-D motion tracks: points that the player drags over the picture, as channels beside the latents (MotionStream).

Every track has a number; where it is in a frame, the map holds that number's sinusoidal vector, spread over the nearest
cells. arXiv:2511.01266 describes the scheme; how its weights shape it is not published, so a world has to be trained
for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import SpecError


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


@dataclass(frozen=True)
class Drawing:
    """Tracks under way, as the mouse draws them while the world runs. Immutable: every event gives the next one.

    heads: number and last place (x, y within 0..1) of every track; held: the one under the mouse button, or None.
    """

    heads: tuple[tuple[float, float], ...] = ()
    held: int | None = None

    def press(self, x: float, y: float, reach: float = 0.05) -> Drawing:
        """Take up the track that is near, or begin one."""
        near = [(abs(a - x) + abs(b - y), number) for number, (a, b) in enumerate(self.heads)]
        if near and min(near)[0] <= reach:
            return Drawing(self.heads, min(near)[1]).move(x, y)
        return Drawing((*self.heads, (x, y)), len(self.heads))

    def move(self, x: float, y: float) -> Drawing:
        """Drag the track under the button; the others stay where they are."""
        if self.held is None:
            return self
        place = (min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0))
        return Drawing((*self.heads[: self.held], place, *self.heads[self.held + 1 :]), self.held)

    def release(self) -> Drawing:
        return Drawing(self.heads)

    def points(self, tracks: int) -> tuple[Tensor, Tensor]:
        """This picture's points [1, 1, tracks, 2] and which are visible [1, 1, tracks].

        Those beyond `tracks` are dropped.
        """
        places, visible = torch.zeros(1, 1, tracks, 2), torch.zeros(1, 1, tracks, dtype=torch.bool)
        for number, place in enumerate(self.heads[:tracks]):
            places[0, 0, number], visible[0, 0, number] = torch.tensor(place), True
        return places, visible

"""What streaming video codecs have in common: latent frames go in one portion after the other, pictures come out.

A latent frame is worth `growth` pictures, except the first of a stream: it is a single picture. To keep shapes equal
for every tick and for players who started at different times, a codec returns `growth` pictures for that one too, all
of them copies of the single picture; `without_lead` drops the copies again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from worldmodel.errors import SpecError

State = dict[str, Tensor]


class StreamingCodec(Protocol):
    """Latents [batch, frames, channels, rows, columns] to pictures [batch, frames · growth, 3, height, width]."""

    growth: int

    def empty_state(self, batch: int, rows: int, columns: int) -> State:
        """The decoder's memory before the first latent frame; rows and columns of the latent."""
        ...

    def decode(self, latents: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """The next pictures, unclamped where the codec leaves them so, and the memory after them."""
        ...

    def to_bytes(self, pictures: Tensor) -> Tensor:
        """uint8 [..., height, width, 3] of the codec's own pictures [..., 3, height, width]."""
        ...


def lead_repeated(pictures: Tensor, starting: Tensor) -> Tensor:
    """The pictures of one latent frame; for players who are starting, the last one in every place.

    pictures: [batch, growth, 3, height, width]. starting: bool [batch].
    """
    return torch.where(starting.view(-1, 1, 1, 1, 1), pictures[:, -1:], pictures)


def without_lead(pictures: Tensor, starting: Tensor, growth: int) -> Tensor:
    """Drop the copies in front of a stream's first picture. All players must stand at the same point.

    pictures: [batch, frames · growth, …] as decoded in one call. starting: bool [batch] before that call.
    """
    if bool(starting.any()) != bool(starting.all()):
        raise SpecError("some players of the batch are starting and some are not: decode them apart")
    return pictures[:, growth - 1 :] if bool(starting.all()) else pictures

"""Attention over a pass and a cache: who sees whom, and where everything stands in time.

A pass takes query frames in groups. Every group says at which positions its frames stand, which other frames of the
same pass it sees, and what of the cache it sees. Block-causal masks, rolling windows and the commit of a clean block
riding in the pass of the next one are groupings of one pass, not variants of the attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as nnf
from torch import Tensor

from worldmodel.cache.base import Reading, State

EVERY, NONE = slice(None), slice(0, 0)  # frames of a pass


@dataclass(frozen=True)
class Turns:
    """Rotations of frames at given temporal positions."""

    space: Tensor  # complex [batch, frames, T, 1, D/2]
    action: Tensor  # complex [batch, frames, 1, 1, turned / 2], of the action modules; no pairs where there are none


@dataclass(frozen=True)
class Context:
    """What is read from a cache, rotated and ready: store name to keys and values [batch, layers, frames, T, H, D].

    valid: [batch, frames] bool, or None where all are.
    """

    keys: dict[str, Tensor]
    values: dict[str, Tensor]
    frames: int
    valid: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """Frames of the same pass that a group sees as keys, and the positions they are seen at.

    turns: None where they are seen at the positions at which they themselves stand.
    """

    frames: slice
    turns: Turns | None = None
    live: Tensor | None = None  # [batch, frames] bool

    def turned(self, key: Tensor, rotated: Tensor, space: bool = True) -> Tensor:
        """Their keys, of all frames' keys as they are and as they stand."""
        if self.turns is None:
            return only(rotated, self.frames)
        return rotate(only(key, self.frames), self.turns.space if space else self.turns.action)


@dataclass(frozen=True)
class Group:
    """Query frames that share what they see."""

    frames: slice
    turns: Turns
    sees: tuple[Seen, ...]
    context: Context | None = None

    def keys(self, store: str, layer: int, fresh: list[Tensor]) -> Tensor:
        """Keys of everything seen, [batch, frames, T, H, D]; fresh: those of this pass, as this group sees them."""
        cached = [] if self.context is None else [self.context.keys[store].select(1, layer)]
        return _joined(cached + fresh)

    def values(self, store: str, layer: int, value: Tensor) -> Tensor:
        """Values of everything seen."""
        cached = [] if self.context is None else [self.context.values[store].select(1, layer)]
        return _joined(cached + [only(value, seen.frames) for seen in self.sees])

    def mask(self, tokens: int) -> Tensor | None:
        """[batch, 1, 1, keys] bool, or None where everything may be seen."""
        known = None if self.context is None else self.context.valid
        if known is None and all(seen.live is None for seen in self.sees):
            return None
        batch = self.turns.space.shape[0]
        parts = [] if self.context is None else [_all(known, batch, self.context.frames, self.turns.space)]
        parts += [_all(seen.live, batch, seen.frames.stop - seen.frames.start, self.turns.space) for seen in self.sees]
        return torch.cat(parts, 1).repeat_interleave(tokens, 1)[:, None, None]


def standing(groups: tuple[Group, ...]) -> Turns:
    """Rotations of all frames of a pass, each where it stands itself."""
    if len(groups) == 1:
        return groups[0].turns
    return Turns(*(torch.cat([getattr(group.turns, part) for group in groups], 1) for part in ("space", "action")))


def only(x: Tensor, frames: slice) -> Tensor:
    """Some frames of [batch, F, …]. All of them are the tensor itself: views cost time where passes are small."""
    count = int(x.shape[1])
    start, stop, _ = frames.indices(count)
    return x if stop - start == count else x.narrow(1, start, stop - start)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _all(mask: Tensor | None, batch: int, frames: int, like: Tensor) -> Tensor:
    return torch.ones(batch, frames, dtype=torch.bool, device=like.device) if mask is None else mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention. query: [batch, f, T, H, D]; key, value: [batch, n, T', H, D]. Returns [batch, f, T, H·D]."""
    frames, tokens = map(int, query.shape[1:3])  # plain numbers: a recording would work them out every time
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (query, key, value))
    told = nnf.scaled_dot_product_attention(q, k, v, mask)
    return told.transpose(1, 2).flatten(2).unflatten(1, (frames, tokens))


class Fresh:
    """Keys and values that a pass makes, as a cache stores them; those of the wanted frames are kept."""

    def __init__(self, frames: slice) -> None:
        self.frames = frames
        self.layers: dict[str, list[Tensor]] = {}

    def keep(self, store: str, key: Tensor, value: Tensor) -> None:
        """Note a layer's keys and values, [batch, F, T, H, D]."""
        if self.frames != NONE:
            self.layers.setdefault(f"kv.{store}.k", []).append(key[:, self.frames])
            self.layers.setdefault(f"kv.{store}.v", []).append(value[:, self.frames])

    def stacked(self) -> State:
        """[batch, layers, kept frames, T, H, D] by name."""
        return {name: torch.stack(layers, 1) for name, layers in self.layers.items()}


def behind(group: Group, silent: int) -> slice:
    """Where a group's frames are once the silent ones in front are left out."""
    return slice(group.frames.start - silent, group.frames.stop - silent)


def angles(positions: Tensor, pairs: int, theta: float) -> Tensor:
    """Rotation angles of integer positions […].

    Float64 […, pairs]. Any position will do; there is no table to run out of.
    """
    return positions[..., None] * _speeds(pairs, theta).to(positions.device)


@lru_cache(maxsize=16)
def _speeds(pairs: int, theta: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.pow(theta, -torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))


def unit(angle: Tensor) -> Tensor:
    """Angles to complex numbers of length one, complex64."""
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate neighbouring pairs of numbers. x: […, D], turn: complex […, D/2 or fewer]; pairs beyond it stay."""
    single = x.dtype == torch.float32  # asked here, so that a recording holds nothing that does nothing
    pairs = torch.view_as_complex((x if single else x.float()).unflatten(-1, (-1, 2)))
    turning = turn.shape[-1]
    if turning == pairs.shape[-1]:
        turned = pairs * turn
    else:
        turned = torch.cat([pairs[..., :turning] * turn, pairs[..., turning:]], -1)
    made = torch.view_as_real(turned).flatten(-2)
    return made if single else made.type_as(x)


def select(reading: Reading, columns: Tensor) -> Reading:
    """Only the marked columns [n] of a reading."""
    found: dict[str, Tensor] = {"query_positions": reading.query_positions}
    for name in ("slots", "frames", "positions", "valid", "unrotated", "partner", "weight"):
        part = getattr(reading, name)
        if part is not None:
            found[name] = part[:, columns]
    return Reading(**found)

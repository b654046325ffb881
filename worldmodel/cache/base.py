"""What every cache is: a bookkeeper of slots over plain arrays, asked three things (read, commit, renew).

A cache owns no tensor. Its state is part of the flat state of the stream:

    state["cache.next"]:   [batch] int64, frames committed so far = the number of the next frame
    state["cache.frame"]:  [batch, slots] int64, the frame in each slot; slots are filled in order, so slot s is empty
                           as long as next <= s, and a state of zeros is a cache that holds nothing
    state["kv.NAME"]:      [batch, layers, slots, tokens, heads, head_dim], any number of stores that share the slots:
                           keys and values of self-attention, of a camera branch, of action modules, …

Keys are stored without rotation. Where a cached frame stands in time is decided each time it is read, as integers; so
absolute, cache-relative and re-anchored sinks differ in one line of arithmetic. No slot is ever moved: a new frame
takes the slot of the oldest, and the cost of a tick does not depend on how long the game lasts.

Committing has an order: before a block is denoised for the first time room is made for it. Here `read` answers as if
room had been made, without writing, and `commit` makes the room and fills it; a state is thus always whole between two
calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """Which cached frames a group of query frames attends to, and where everything stands in time.

    slots:            [batch, n] int64, the slots to read
    frames:           [batch, n] int64, the frame in each of them
    positions:        [batch, n] int64, temporal position that each is read at
    valid:            [batch, n] bool, False where nothing is stored or nothing may be seen
    query_positions:  [batch, q] int64, temporal positions of the query frames
    unrotated:        [batch, n] bool or None, keys to be read without any rotation, in space too
    partner, weight:  [batch, n] int64 and [batch, n, 2] float32, or None: what is read is
                      weight[0]·slot + weight[1]·partner (a sink that is fused while it is read)
    """

    slots: Tensor
    frames: Tensor
    positions: Tensor
    valid: Tensor
    query_positions: Tensor
    unrotated: Tensor | None = None
    partner: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class Renewal:
    """The frames to compute again after a prompt switch, and where they go.

    frames:   [batch, q] int64, their numbers, negative where there is none
    slots:    [batch, q] int64, where each is written
    live:     [batch, q] bool, False for frames that are not computed, seen or written
    context:  what stays as it was and is read by the renewed frames
    """

    frames: Tensor
    slots: Tensor
    live: Tensor
    context: Reading


class Cache(Protocol):
    """A cache technique. Frozen; knows sizes, holds nothing. `in_place` writes into the state's own arrays."""

    clean_apart: ClassVar[bool]  # whether `read` answers clean queries differently

    @property
    def slots(self) -> int:
        """Frames that are kept."""

    @property
    def chunk(self) -> int:
        """Frames that are committed together."""

    def read(self, state: State, frames: int, ahead: int = 0, clean: bool = False) -> Reading:
        """What `frames` query frames see; the first of them is `ahead` frames behind the next one to be committed.

        clean: whether the queries are the finished frames about to be committed, which some techniques treat apart.
        """

    def early(self, state: State) -> int:
        """Leading frames of the next block that are stored as its first pass makes them, not as the clean pass does."""

    def make_room(self, state: State, in_place: bool = False) -> State:
        """What the state becomes when the oldest frames leave for the next block: a sink may take something of them."""

    def fill(self, state: State, fresh: State, in_place: bool = False) -> State:
        """Store finished frames, at most a block, where room was made.

        fresh["kv.NAME"]: [batch, layers, frames, tokens, heads, D].
        """

    def book(self, state: State, count: int) -> State:
        """The bookkeeping of `fill` with so many frames, without the arrays: for a pass in which the commit rides."""

    def renew(self, state: State, keep_sink: bool) -> Renewal:
        """What a prompt switch computes again."""


def commit(cache: Cache, state: State, fresh: State, in_place: bool = False) -> State:
    """Store one finished block."""
    roomy = cache.make_room(state, in_place)
    return cache.fill(roomy, fresh, in_place=in_place or roomy is not state)


def empty_slots(cache: Cache, batch: int, device: torch.device | str = "cpu") -> State:
    """The bookkeeping of a cache that holds nothing yet."""
    return {
        "cache.next": torch.zeros(batch, dtype=torch.int64, device=device),
        "cache.frame": torch.zeros(batch, cache.slots, dtype=torch.int64, device=device),
    }


def gather(store: Tensor, reading: Reading) -> Tensor:
    """Read a store. [batch, layers, slots, …] to [batch, layers, n, …]."""
    kept = _take(store, reading.slots)
    if reading.partner is None or reading.weight is None:
        return kept
    shape = (reading.slots.shape[0], 1, reading.slots.shape[1], *(1 for _ in store.shape[3:]))
    own, other = (reading.weight[..., i].reshape(shape).to(store.dtype) for i in (0, 1))
    return own * kept + other * _take(store, reading.partner)


def write(store: Tensor, slots: Tensor, value: Tensor, live: Tensor | None = None, in_place: bool = False) -> Tensor:
    """Put value [batch, layers, n, …] into the slots [batch, n] of a store; entries that are not `live` stay."""
    out = store if in_place else store.clone()
    for row, places in enumerate(slots):
        chosen = slice(None) if live is None else live[row]
        out[row].index_copy_(1, places[chosen], value[row][:, chosen].to(store.dtype))
    return out


def count_up(n: int, like: Tensor) -> Tensor:
    """[1, n] int64 on the device of `like`: 0, 1, 2, …"""
    return torch.arange(n, device=like.device)[None]


def _take(store: Tensor, slots: Tensor) -> Tensor:
    if store.shape[0] == 1:
        return store.index_select(2, slots[0])
    return torch.stack([row.index_select(1, places) for row, places in zip(store, slots, strict=True)])

"""Passes of a Wan transformer as recorded programs: the same operations, without Python between them.

    stream.model = TracedPass(stream.model)

A stream repeats a few patterns of passes: which frames, who sees whom, how many cached frames. A pattern that comes
back is recorded once and replayed from then on, with its weights packed for oneDNN (export/packed.py). What has masks,
cameras, actions or image tokens is left to the transformer itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from export.packed import given, packed, weights
from worldmodel.cache.attention import EVERY, Context, Group, Seen, Turns
from worldmodel.cache.base import State
from worldmodel.families.wan_transformer import Conditions, Levels, WanTransformer

WORTH_IT = 2  # times that a pattern has to be seen before it is recorded
STORED = ("kv.self.k", "kv.self.v")  # what a pass hands to the cache
VECTORS = 6  # of a layer's modulation

Pattern = tuple[Any, ...]
Program = Callable[..., tuple[Tensor, ...]]


@dataclass
class TracedPass:
    """Behaves as the transformer that it wraps. What it keeps follows from weights and patterns alone."""

    model: WanTransformer
    seen: dict[Pattern, int] = field(default_factory=dict, repr=False)
    programs: dict[Pattern, Program] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.fast = packed(self.model)
        self.weights = weights(self.fast)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(
        self,
        latents: Tensor,
        levels: Levels,
        groups: tuple[Group, ...],
        conditions: Conditions,
        keep: slice = EVERY,
        silent: int = 0,
    ) -> tuple[Tensor, State]:
        told = (conditions.camera, conditions.rays, conditions.channels, conditions.mouse, conditions.keyboard)
        plain = all(part is None for part in told) and "image.k" not in conditions.cross
        if not plain or any(group.mask(1) is not None for group in groups):
            return cast("tuple[Tensor, State]", self.model(latents, levels, groups, conditions, keep, silent))
        pattern, tensors = taken_apart(latents, levels, groups, conditions, keep, silent)
        if pattern not in self.programs:
            self.seen[pattern] = self.seen.get(pattern, 0) + 1
            if self.seen[pattern] < WORTH_IT:
                return cast("tuple[Tensor, State]", self.model(latents, levels, groups, conditions, keep, silent))
            self.programs[pattern] = record(self.fast, pattern, tensors + self.weights)
        flow, *fresh = self.programs[pattern](*tensors, *self.weights)
        return flow, dict(zip(STORED, fresh, strict=True)) if fresh else {}


def taken_apart(
    latents: Tensor, levels: Levels, groups: tuple[Group, ...], conditions: Conditions, keep: slice, silent: int
) -> tuple[Pattern, list[Tensor]]:
    """What is the same in every pass of a kind, and the tensors that differ, in the order `Whole` takes them."""
    tensors = [latents, conditions.cross["cross.k"], conditions.cross["cross.v"]]
    tensors += [part for layer in levels.blocks for part in layer] + list(levels.head)
    kinds = []
    for group in groups:
        own = [group.turns.space] if group.context is None else [group.turns.space, *_self(group.context)]
        tensors += own + [seen.turns.space for seen in group.sees if seen.turns is not None]
        places = tuple((seen.frames.start, seen.frames.stop, seen.turns is not None) for seen in group.sees)
        cached = 0 if group.context is None else group.context.frames
        kinds.append((group.frames.start, group.frames.stop, cached, places))
    return (tuple(latents.shape), tuple(kinds), keep.start, keep.stop, silent), tensors


def _self(context: Context) -> tuple[Tensor, Tensor]:
    return context.keys["self"], context.values["self"]


def record(model: WanTransformer, pattern: Pattern, tensors: list[Tensor]) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants: a program belongs to one pattern
        traced = torch.jit.trace(Whole(model, pattern).eval(), tuple(tensors), check_trace=False)
        return cast(Program, torch.jit.freeze(traced))


class Whole(nn.Module):
    """The pass of one pattern as a function of tensors alone."""

    def __init__(self, model: WanTransformer, pattern: Pattern) -> None:
        super().__init__()
        self.model, self.pattern = model, pattern

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        _, kinds, start, stop, silent = self.pattern
        inputs = iter(tensors)
        latents, key, value = next(inputs), next(inputs), next(inputs)
        layers = range(self.model.spec.layers)
        levels = Levels(tuple(_next(inputs, VECTORS) for _ in layers), _next(inputs, 2))
        groups = tuple(_group(inputs, latents, *kind) for kind in kinds)
        cross = Conditions({"cross.k": key, "cross.v": value})
        with given(self.model, list(inputs)):
            flow, fresh = self.model(latents, levels, groups, cross, slice(start, stop), silent)
        return flow, *fresh.values()


def _group(
    inputs: Iterator[Tensor], like: Tensor, start: int, stop: int, cached: int, places: tuple[Any, ...]
) -> Group:
    nothing = like.new_zeros(0)
    turns, context = Turns(next(inputs), nothing), None
    if cached:
        context = Context({"self": next(inputs)}, {"self": next(inputs)}, cached)
    sees = tuple(Seen(slice(a, b), Turns(next(inputs), nothing) if turned else None) for a, b, turned in places)
    return Group(slice(start, stop), turns, sees, context)


def _next(inputs: Iterator[Tensor], count: int) -> tuple[Tensor, ...]:
    return tuple(next(inputs) for _ in range(count))

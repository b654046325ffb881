"""Ticks of a stream in its steady state as recorded programs: no Python between the operations of a whole tick.

    stream = TracedTick(Stream(…, fused=True, in_place=True))
    latents, state = stream.tick(state, noise)

Once the cache is full every decision of a tick is the same each time: what is seen, which slots are read in what order,
what rides. Such a tick is recorded when it comes back and replayed from then on; ticks before that, re-primes, and
whatever is steered go pass by pass (traced_pass.py). Weights are packed (packed.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from export.packed import given, weights
from export.traced_pass import WORTH_IT, TracedPass
from worldmodel.cache.base import State
from worldmodel.families.wan_transformer import WanTransformer
from worldmodel.schedule.plan import Plan
from worldmodel.schedule.sampler import Steer, Stream

Key = tuple[Plan, torch.Size, tuple[str, ...]]


@dataclass
class TracedTick:
    """Behaves as the stream that it wraps, whose state it uses up. What it keeps follows from weights and plans."""

    stream: Stream
    seen: dict[Key, int] = field(default_factory=dict, repr=False)
    programs: dict[Key, Callable[..., tuple[Tensor, ...]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.traced = TracedPass(self.stream.model)
        self.stream = replace(self.stream, model=cast(WanTransformer, self.traced), in_place=True)
        self.inner = replace(self.stream, model=self.traced.fast)  # the same memory of levels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def tick(
        self, state: State, noise: Tensor, steer: Steer | None = None, plan: Plan | None = None
    ) -> tuple[Tensor, State]:
        """The tick of the stream; the state that is handed in is used up."""
        plan = plan or self.stream.plan(state)
        if steer or not self._steady(state):
            return self.stream.tick(state, noise, steer, plan)
        names = tuple(state)
        key = (plan, noise.shape, names)
        if key not in self.programs:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] < WORTH_IT:
                return self.stream.tick(state, noise, steer, plan)
            self.programs[key] = self._record(state, noise, plan)
        latents, *after = self.programs[key](noise, *state.values(), *self.traced.weights)
        return latents, dict(zip(names, after, strict=True))

    def _steady(self, state: State) -> bool:
        """Whether the cache is full, so that its answers differ in numbers only, and a commit waits where they ride."""
        cache = self.stream.cache
        if self.stream.guidance is not None or (self.stream.fused and not all(state["pending.full"].tolist())):
            return False
        return min(state["cache.next"].tolist()) >= cache.slots + cache.chunk

    def _record(self, state: State, noise: Tensor, plan: Plan) -> Callable[..., tuple[Tensor, ...]]:
        copies = [part.clone() for part in state.values()]  # recording runs the tick once
        whole = _Whole(self.inner, plan, tuple(state)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes and decisions become constants: that is what a program is for
            traced = torch.jit.trace(whole, (noise, *copies, *weights(self.traced.fast)), check_trace=False)
            return cast("Callable[..., tuple[Tensor, ...]]", torch.jit.freeze(traced))


class _Whole(nn.Module):
    """A tick as a function of tensors alone."""

    def __init__(self, stream: Stream, plan: Plan, names: tuple[str, ...]) -> None:
        super().__init__()
        self.stream, self.plan, self.names = stream, plan, names
        self.model = stream.model

    def forward(self, noise: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(self.names)
        state = dict(zip(self.names, tensors[:count], strict=True))
        with given(self.model, list(tensors[count:])):
            latents, after = self.stream.tick(state, noise, None, self.plan)
        return (latents, *(after[name] for name in self.names))

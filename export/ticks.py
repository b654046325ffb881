"""The ways in which a native world makes its next frame, each a graph of its own; all share weights and state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from worldmodel.spec import WorldSpec
from worldmodel.tick import State, count_noises, reprime, tick

Tick = Callable[..., tuple[Tensor, State]]


@dataclass(frozen=True)
class Way:
    """make: called as `tick` is, without a schedule. noise: shape of one player's noise in one tick."""

    make: Tick
    noise: tuple[int, int, int, int]


def ticks(spec: WorldSpec) -> dict[str, Way]:
    """`tick`, and by the names that runtime/governor.py knows: `reprime`, if frames are in flight; `tick_fast`, of half
    the passes, if there are passes to leave out."""
    schedule, fewer = spec.schedule, spec.schedule.fewer
    ways = {"tick": Way(tick, (schedule.noises, *spec.latent_shape))}
    if schedule.frames > 1:
        ways["reprime"] = Way(reprime, (count_noises(schedule.reprime), *spec.latent_shape))
    if fewer:
        ways["tick_fast"] = Way(partial(tick, schedule=fewer), (fewer.noises, *spec.latent_shape))
    return ways

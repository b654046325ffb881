"""Does a world remember where it was, and does it dream of more than one place?

A car cannot turn on the spot, but with the wheel held over it drives a circle of ten units' radius, well within the
picture: after a full turn it is where it was and sees what it saw. Most of that had left the picture in between, so a
world must remember it or have dreamt it consistently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.train.evaluate_car import Progress, Start, drive, driven_start, games, held, rolling_start
from worldmodel.train.intervals import interval, mean_interval
from worldmodel.train.judge.judge import Judge
from worldmodel.train.measure import Motion, Picture, motion, road_mask
from worldmodel.train.playable import Frames, Game, Playable, RealGame

CRUISE = 1.5  # pixels of a 128 × 128 frame that the circling car makes in a tick
SETTLED = 8  # ticks from which the wheel is over: the circle begins there
NEARLY = 0.12  # radians short of or past the full turn at which the view may match best
CIRCLE = 170  # ticks; the real car needs about 110
DREAM = 100  # ticks after which worlds of different seeds are compared: all that was in view has gone by


@dataclass
class Circle:
    """One player's way round."""

    turned: float = 0.0  # radians since the circle began
    begun: NDArray[np.bool_] | None = None  # the road as it lay then
    again: float = 0.0  # how like it the road lies after the full turn, 0 when the car never comes round
    first: Picture | None = None
    last: Picture | None = None


def memory(world: Playable, size: int, seed: int, rollouts: int) -> tuple[dict[str, Any], list[list[Picture]]]:
    """Drive a full circle: does the road lie as before? Also frames to look at: begun and come round, real then made.

    Roads are compared as masks, intersection over union. memory_chance: of different players' roads.
    """
    rng = np.random.default_rng([seed, 41])
    starts = [rolling_start(world, size, int(s), 14.0, ["gas"]) for s in rng.integers(2**31, size=rollouts)]
    found: dict[str, Any] = {}
    scores, rows = [], []
    for name, game in zip(("_real", ""), games(world, starts, seed), strict=True):
        players = circle(game, starts)
        score = np.array([player.again for player in players])
        found[f"memory{name}"] = float(score.mean())
        scores.append(score)
        rows.append([(p.first, p.last if p.last is not None else p.first) for p in players])
        if name:
            begun = [player.begun for player in players if player.begun is not None]
            found["memory_chance"] = chance(begun)
    found["intervals"] = {"memory": mean_interval(scores[1])}
    strip = [[one for pair in pairs for one in pair if one is not None] for pairs in zip(*rows, strict=True)]
    return found, strip[:4]


def circle(game: Game, starts: Sequence[Start]) -> list[Circle]:
    """Hold left, and gas where the car is slow, until every car has come round or the time is over."""
    players = [Circle() for _ in starts]
    frames = np.stack([start.frames[-1] for start in starts])
    moved: list[Motion | None] = [None for _ in starts]
    for tick in range(CIRCLE):
        slow = [move is None or move.forward < CRUISE for move in moved]
        keys = np.stack([held("left", *(["gas"] if more else [])) for more in slow])
        before, frames = frames, game.tick(keys)
        for i, (player, start) in enumerate(zip(players, starts, strict=True)):
            found = motion(before[i], frames[i], moved[i])
            moved[i] = found
            _follow(player, start, frames[i], found, tick)
        if all(player.turned > 2 * math.pi + NEARLY for player in players):
            break
    return players


def _follow(player: Circle, start: Start, frame: Picture, move: Motion, tick: int) -> None:
    if tick < SETTLED:
        return
    if player.begun is None:
        player.begun, player.first = road_mask(frame, start.road, start.grass), frame
        return
    player.turned += move.rotation
    if abs(player.turned - 2 * math.pi) < NEARLY:
        alike = overlap(player.begun, road_mask(frame, start.road, start.grass))
        if alike >= player.again:
            player.again, player.last = alike, frame


def overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union; 0 where there is no road at all."""
    return float((first & second).sum() / max((first | second).sum(), 1))


def chance(roads: Sequence[NDArray[np.bool_]]) -> float:
    """Mean overlap of different players' roads."""
    pairs = [overlap(a, b) for i, a in enumerate(roads) for b in roads[:i]]
    return float(np.mean(pairs)) if pairs else 0.0


def diversity(
    world: Playable, size: int, seed: int, rollouts: int, judge: Judge, progress: Progress
) -> tuple[dict[str, Any], list[list[Picture]]]:
    """One beginning, other noise: how unlike are the places reached, beside those of as many real tracks?

    0: every seed dreams the same road. 1: they differ as real tracks in the same colours do. Also those frames.
    """
    rng = np.random.default_rng([seed, 43])
    starts = [driven_start(world, size, int(s)) for s in rng.integers(2**31, size=max(rollouts, 2))]
    one = starts[0]
    scene = one.car.scene()
    for start in starts:
        start.car.paint(scene["road_name"], one.road, scene["grass_name"], one.grass)
        start.frames[-1] = start.car.look()
    frames, actions = np.stack(one.frames), np.stack(one.actions)
    alike = [Start(one.car, one.frames, one.actions) for _ in starts]
    count = len(starts)
    game = world.begin(np.stack([frames] * count), np.stack([actions] * count), [one.prompt] * count, seed)
    progress("dreaming from one beginning")
    made = drive(game, alike, DREAM, lambda text: None).shown[DREAM]
    real = drive(RealGame([start.car for start in starts]), starts, DREAM, lambda text: None).shown[DREAM]
    apart, usual = between(made, judge), between(real, judge)
    everyone = np.arange(count)
    scale = max(_mean_of(usual, everyone), 1e-6)
    figures = {
        "diversity": _mean_of(apart, everyone) / scale,
        "intervals": {"diversity": interval(lambda chosen: _mean_of(apart, chosen) / scale, count)},
    }
    return figures, [list(real[:8]), list(made[:8])]


def between(frames: Frames, judge: Judge) -> NDArray[np.float64]:
    """The eye's distance of every frame from every other, [players, players]."""
    count = len(frames)
    first, second = np.divmod(np.arange(count * count), count)
    return judge.distance(frames[first], frames[second]).reshape(count, count)


def _mean_of(distances: NDArray[np.float64], chosen: NDArray[np.intp]) -> float:
    """Mean over pairs of different players among these."""
    different = chosen[:, None] != chosen
    return float(distances[np.ix_(chosen, chosen)][different].mean()) if different.any() else 0.0

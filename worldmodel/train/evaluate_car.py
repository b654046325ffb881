"""How well a generated car drives, beside the real one: the same trials, drivers and probes for both.

Every trial begins both games at the same real frames. Frames alone are judged (measure.py), never the environment's
state.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.train import measure
from worldmodel.train.envs import Keys, captions
from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.intervals import mean_interval, ratio_interval
from worldmodel.train.judge.hands import AFTER, BEFORE, flow_strength
from worldmodel.train.judge.judge import Judge
from worldmodel.train.measure import Motion, colour_errors, motion, on_road, road_mask
from worldmodel.train.pixel_driver import PixelDriver
from worldmodel.train.playable import Frames, Game, Playable, RealGame

SAME_COLOUR = 12.0  # CIE76 distance up to which a colour counts as the one that was asked for
TURNING = 0.004  # radians a tick from which the picture counts as turning
STRAIGHT_ON = 7  # ticks of a rolling start in which its keys are held
STEERED = slice(5, 30)  # ticks of a held steering key that count: the wheels are over by then
AWAY, BACK, KEPT = 30, 250, 50  # ticks of steering off the road; to be back on it; the last of these, that count
SHOWN = (1, 10, 50, 100, 500, 2000)  # ticks on the strips
SAMPLED = 5  # every so many ticks a frame's statistics are kept
Progress = Callable[[str], None]
Strip = list[list[NDArray[np.uint8]]]  # rows of frames to look at


@dataclass
class Start:
    """A car on a held-out track, and the frames that led there. `car` goes on from there."""

    car: CarRacing
    frames: list[NDArray[np.uint8]]
    actions: list[Keys]

    @property
    def prompt(self) -> str:
        text: str = self.car.scene()["captions"][0]
        return text

    @property
    def road(self) -> captions.Rgb:
        return _rgb(self.car.scene()["road"])

    @property
    def grass(self) -> captions.Rgb:
        return _rgb(self.car.scene()["grass"])


def rolling_start(world: Playable, size: int, seed: int, speed: float, keys: Sequence[str]) -> Start:
    """A car that has come along the road and now rolls straight on with these keys held."""
    car = CarRacing(size=size, split="test", recolour=False)
    car.reset(seed)
    rng = np.random.default_rng(seed)
    car.place(int(rng.integers(len(car.track))), int(rng.choice([-1, 1])), speed)
    along = _driver(car)
    ticks = itertools.count(world.context - 1, -1)  # left of the lead-up
    return _led_up(world, car, car.look(), lambda frame: along(frame) if next(ticks) > STRAIGHT_ON else held(*keys))


def rolling_starts(world: Playable, size: int, rng: np.random.Generator, count: int) -> list[Start]:
    """Cars at moderate speeds, gas held."""
    seeds, speeds = rng.integers(2**31, size=count), rng.uniform(12, 30, count)
    return [rolling_start(world, size, int(s), float(v), ["gas"]) for s, v in zip(seeds, speeds, strict=True)]


def driven_start(world: Playable, size: int, seed: int) -> Start:
    """A car that has come along the road, its driver seeing pixels only."""
    car = CarRacing(size=size, split="test", recolour=False)
    frame = car.reset(seed)
    return _led_up(world, car, frame, _driver(car))


def _driver(car: CarRacing) -> PixelDriver:
    scene = car.scene()
    return PixelDriver(_rgb(scene["road"]), _rgb(scene["grass"]))


def _led_up(
    world: Playable, car: CarRacing, frame: NDArray[np.uint8], drive: Callable[[NDArray[np.uint8]], Keys]
) -> Start:
    start = Start(car, [frame], [held()])
    for _ in range(world.context - 1):
        start.actions.append(drive(start.frames[-1]))
        start.frames.append(car.step(start.actions[-1])[0])
    return start


def games(world: Playable, starts: Sequence[Start], seed: int) -> tuple[Game, Game]:
    """The real and the generated game of all starts. The real one uses up the starts' cars."""
    frames, actions = (np.stack([np.stack(getattr(start, name)) for start in starts]) for name in ("frames", "actions"))
    made = world.begin(frames, actions, [start.prompt for start in starts], seed)
    return RealGame([start.car for start in starts]), made


def held(*names: str) -> Keys:
    """These keys and no others."""
    return np.isin(CarRacing.actions, names)


# -- a steering key, held ---------------------------------------------------------------------------------------------


def steering(world: Playable, size: int, seed: int, rollouts: int) -> tuple[dict[str, dict[str, Any]], Strip]:
    """Hold left, then right: does the picture turn the right way, how fast, how soon? Also frames to look at."""
    found: dict[str, dict[str, Any]] = {}
    rows: Strip = []
    for key, sign in (("left", 1), ("right", -1)):
        starts = rolling_starts(world, size, np.random.default_rng([seed, 17]), rollouts)
        first = np.stack([start.frames[-1] for start in starts])
        real, made = (_hold(game, first, held(key), STEERED.stop) for game in games(world, starts, seed))
        turned_real, turned = (sign * _rotations(first, frames) for frames in (real, made))  # [ticks, players]
        steady = turned_real[10:20].mean(0)
        later = _first(turned > steady / 4) - _first(turned_real > steady / 4)
        found[key] = {
            "sign": _mean(turned[STEERED] > TURNING),
            "sign_real": _mean(turned_real[STEERED] > TURNING),
            "speed": _mean(turned[STEERED]) / max(_mean(turned_real[STEERED]), 1e-6),
            "response_ticks": _mean(later),
            "intervals": {
                "sign": mean_interval((turned[STEERED] > TURNING).astype(float)),
                "speed": ratio_interval(turned[STEERED], turned_real[STEERED]),
                "response_ticks": mean_interval(later.astype(float)),
            },
        }
        players = range(min(2, rollouts))
        rows += [[frames[tick][i] for tick in (0, 4, 9, 19, 29)] for i in players for frames in (real, made)]
    return found, rows


def _hold(game: Game, first: Frames, keys: Keys, ticks: int) -> list[Frames]:
    return [game.tick(np.tile(keys, (len(first), 1))) for _ in range(ticks)]


def _rotations(first: Frames, frames: list[Frames]) -> NDArray[np.float64]:
    return np.array([[move.rotation for move in moves] for moves in _moves([first, *frames])])


def _moves(frames: list[Frames]) -> list[list[Motion]]:
    """Every player's motion from each frame to the next."""
    return [[motion(a, b) for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(frames)]


def _first(happened: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each player the first tick at which it happened, counted from 1; one more than there are ticks if never."""
    return np.where(happened.any(0), happened.argmax(0), len(happened)) + 1


# -- no key -----------------------------------------------------------------------------------------------------------


def coasting(world: Playable, size: int, seed: int, rollouts: int, ticks: int = 150) -> dict[str, Any]:
    """Let go of all keys at speed: the car must roll on at first and stand in the end."""
    starts = rolling_starts(world, size, np.random.default_rng([seed, 23]), rollouts)
    first = np.stack([start.frames[-1] for start in starts])
    found: dict[str, Any] = {}
    for name, game in zip(("_real", ""), games(world, starts, seed), strict=True):
        frames = _hold(game, first, held(), ticks)
        early, late = (
            [[move.stalled for move in moves] for moves in _moves(part)] for part in (frames[:8], frames[-8:])
        )
        rolled, stood = np.mean(early, 0) < 0.3, np.mean(late, 0) > 0.7
        found |= {f"coasts{name}": _mean(rolled), f"stands{name}": _mean(stood)}
    found["intervals"] = {"coasts": mean_interval(rolled.astype(float)), "stands": mean_interval(stood.astype(float))}
    return found


# -- a driver that sees pixels ----------------------------------------------------------------------------------------


def finding(world: Playable, size: int, seed: int, rollouts: int) -> tuple[dict[str, Any], Strip]:
    """Steer off the road, every other car to the left; does a driver who sees pixels find it again, and stay on it?"""
    starts = rolling_starts(world, size, np.random.default_rng([seed, 41]), rollouts)
    away = np.stack([held("gas", ("right", "left")[player % 2]) for player in range(rollouts)])
    first = np.stack([start.frames[-1] for start in starts])
    found: dict[str, Any] = {}
    rows: Strip = [[] for _ in range(2 * min(4, rollouts))]
    for place, (name, game) in enumerate(zip(("_real", ""), games(world, starts, seed), strict=True)):
        drivers = [PixelDriver(start.road, start.grass) for start in starts]
        frames, on_road = first, []
        for tick in range(AWAY + BACK):
            keys = np.stack([driver(frame) for driver, frame in zip(drivers, frames, strict=True)])
            on_road.append([driver.on_road >= 0.5 for driver in drivers])
            frames = game.tick(away if tick < AWAY else keys)
            if tick + 1 - AWAY in (0, 25, 50, 100, BACK):
                for row, player in zip(rows[place::2], frames, strict=False):
                    row.append(player)
        left, back = ~np.array(on_road[AWAY]), np.mean(on_road[-KEPT:], 0) > 0.8
        found |= {f"leaves_road{name}": _mean(left), f"finds_road{name}": _mean(back[left]) if left.any() else None}
    found["intervals"] = {"finds_road": mean_interval(back[left].astype(float))}
    return found, rows


def unsteered(
    world: Playable, size: int, seed: int, rollouts: int, ticks: int = 150
) -> tuple[dict[str, Any], Strip]:
    """Gas alone: a real road bends away from such a car, and no world may have it come along. Also frames to look at.

    strays: share of ticks off the road, after the first third.
    """
    starts = rolling_starts(world, size, np.random.default_rng([seed, 43]), rollouts)
    colours = [(start.road, start.grass) for start in starts]
    first = np.stack([start.frames[-1] for start in starts])
    found: dict[str, Any] = {}
    rows: Strip = [[] for _ in range(2 * min(4, rollouts))]
    for place, (name, game) in enumerate(zip(("_real", ""), games(world, starts, seed), strict=True)):
        frames = [first, *_hold(game, first, held("gas"), ticks)]
        masks = [
            [road_mask(frame, *of) for frame, of in zip(players, colours, strict=True)]
            for players in frames[1 + ticks // 3 :]
        ]
        strays = np.array([[on_road(mask) < 0.5 for mask in players] for players in masks]).mean(0)
        found[f"strays{name}"] = _mean(strays)
        for player, row in enumerate(rows[place::2]):
            row += [frames[ticks * part // 6][player] for part in range(7)]
    found["intervals"] = {"strays": mean_interval(strays)}
    return found, rows


@dataclass
class Drive:
    """What a closed-loop drive showed, arrays [ticks, players] and statistics of every SAMPLED-th tick."""

    on_road: NDArray[np.float64]
    rotation: NDArray[np.float64]
    forward: NDArray[np.float64]
    stalled: NDArray[np.bool_]  # gas was held for 15 ticks, and nothing moves
    held: NDArray[np.bool_]  # [ticks, players, actions]
    features: NDArray[np.float64]  # [samples, players, features]
    sharpness: NDArray[np.float64]  # [samples, players]
    contrast: NDArray[np.float64]  # [samples, players]
    flow: NDArray[np.float64]  # [samples, players], mean length of the optical flow
    seen: NDArray[np.float64] | None = None  # [samples, players, features], what the judge's eye says
    told: NDArray[np.bool_] | None = None  # [ticks, players, actions], what its hands say, of tick BEFORE + 1 on
    shown: dict[int, Frames] = field(default_factory=dict)


def drive(game: Game, starts: Sequence[Start], ticks: int, progress: Progress, judge: Judge | None = None) -> Drive:
    """Drive for some ticks by the picture alone."""
    drivers = [PixelDriver(start.road, start.grass) for start in starts]
    frames = np.stack([start.frames[-1] for start in starts])
    gas = np.zeros(len(starts), int)
    rows: dict[str, list[object]] = {name: [] for name in ("on_road", "rotation", "forward", "stalled", "held")}
    statistics: dict[str, list[Any]] = {name: [] for name in ("features", "sharpness", "contrast", "flow")}
    moves: list[Any] = []
    seen: list[Any] = []
    shown = {}
    for tick in range(1, ticks + 1):
        keys = np.stack([driver(frame) for driver, frame in zip(drivers, frames, strict=True)])
        if tick > 1:
            moved = [driver.moved for driver in drivers if driver.moved is not None]
            rows["on_road"].append([driver.on_road for driver in drivers])
            rows["rotation"].append([move.rotation for move in moved])
            rows["forward"].append([move.forward for move in moved])
            rows["stalled"].append((gas >= 15) & [move.stalled for move in moved])
            moves.append([(move.rotation, move.forward, move.sideways) for move in moved])
        gas = np.where(keys[:, 2], gas + 1, 0)
        rows["held"].append(keys)
        before, frames = frames, game.tick(keys)
        if tick in SHOWN:
            shown[tick] = frames
        if tick % SAMPLED == 0:
            statistics["features"].append(measure.features(frames))
            statistics["sharpness"].append([measure.sharpness(frame) for frame in frames])
            statistics["contrast"].append([measure.contrast(frame) for frame in frames])
            statistics["flow"].append([flow_strength(a, b) for a, b in zip(before, frames, strict=True)])
            if judge:
                seen.append(judge.describe(frames))
        if tick % 100 == 0:
            progress(f"drove {tick} of {ticks} ticks")
    return Drive(
        **{name: np.array(values) for name, values in (rows | statistics).items()},
        seen=np.array(seen) if judge else None,
        told=judge.held(np.array(moves, np.float32)) if judge and len(moves) > BEFORE + AFTER else None,
        shown=shown,
    )


def closed_loop(
    world: Playable,
    size: int,
    seed: int,
    rollouts: int,
    ticks: int,
    progress: Progress,
    judge: Judge | None = None,
) -> tuple[dict[str, Any], Drive, Drive]:
    """On-road share, stalls, speed and bends of the generated car beside the real one's."""
    rng = np.random.default_rng([seed, 5])
    starts = [driven_start(world, size, int(rng.integers(2**31))) for _ in range(rollouts)]
    real_game, made_game = games(world, starts, seed)
    progress("driving in the real game")
    real = drive(real_game, starts, ticks, lambda text: None, judge)
    progress("driving in the generated game")
    made = drive(made_game, starts, ticks, progress, judge)
    counted = slice(min(100, ticks // 5), 500)
    bends, bends_real = np.abs(made.rotation[counted]), np.abs(real.rotation[counted])
    figures: dict[str, Any] = {
        "on_road": _mean(made.on_road[counted] >= 0.5),
        "on_road_real": _mean(real.on_road[counted] >= 0.5),
        "on_road_later": _mean(made.on_road[500:] >= 0.5) if ticks > 600 else None,
        "stall": _mean(made.stalled),
        "stall_real": _mean(real.stalled),
        "speed_ratio": _mean(made.forward[counted]) / max(_mean(real.forward[counted]), 1e-6),
        "bends_ratio": _mean(bends) / max(_mean(bends_real), 1e-6),
        "intervals": {
            "on_road": mean_interval((made.on_road[counted] >= 0.5).astype(float)),
            "stall": mean_interval(made.stalled.astype(float)),
            "speed_ratio": ratio_interval(made.forward[counted], real.forward[counted]),
            "bends_ratio": ratio_interval(bends, bends_real),
        },
    }
    return figures, real, made


# -- prompts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One prompt switch: what was asked for, and how far the picture was from it, tick by tick."""

    prompt: str
    errors: NDArray[np.float64]  # [ticks], the worse of road and grass, CIE76
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]

    @property
    def final(self) -> float:
        """The distance in the end."""
        return float(np.median(self.errors[-8:]))


def prompts(world: Playable, size: int, seed: int, count: int, ticks: int = 40) -> tuple[dict[str, Any], list[Told]]:
    """Tell slowly rolling worlds held-out colours in held-out words: do they come, and how soon?"""
    rng = np.random.default_rng([seed, 31])
    told: list[Told] = []
    for batch in _batches(count, 16):
        starts = [rolling_start(world, size, int(rng.integers(2**31)), float(rng.uniform(4, 10)), []) for _ in batch]
        _, game = games(world, starts, seed + batch.start)  # players' seeds follow each other
        scenes = [captions.scene_colours(rng, "test") for _ in batch]
        texts = [captions.caption(rng, scene[0], scene[2], "test") for scene in scenes]
        game.say(texts)
        frames = _hold(game, np.stack([start.frames[-1] for start in starts]), held(), ticks)
        for player, (road, _, grass, _) in enumerate(scenes):
            wanted = captions.all_names()[road], captions.all_names()[grass]
            errors = np.array([max(colour_errors(frame[player], *wanted)) for frame in frames])
            told.append(Told(texts[player], errors, starts[player].frames[-1], frames[-1][player]))
    final = np.array([one.final for one in told])
    arrived = [settled(one.errors <= SAME_COLOUR) for one in told]
    reached = [tick for tick in arrived if tick is not None]
    figures: dict[str, Any] = {
        "recognised": _mean(final <= SAME_COLOUR),
        "ticks": float(np.median(reached)) if reached else None,
        "ticks_90": float(np.quantile(reached, 0.9)) if reached else None,
        "error_median": float(np.median(np.minimum(final, 200))),
        "prompts": len(told),
        "intervals": {"recognised": mean_interval((final <= SAME_COLOUR).astype(float))},
    }
    return figures, told


def settled(good: NDArray[np.bool_]) -> int | None:
    """The first tick, counted from 1, from which nearly all are good; None if the last ones are not."""
    for tick in range(len(good) - 4):
        if good[tick] and good[tick:].mean() >= 0.9:
            return tick + 1
    return None


def _batches(count: int, size: int) -> Iterable[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _rgb(colour: Sequence[int]) -> captions.Rgb:
    red, green, blue = colour
    return red, green, blue


def _mean(values: NDArray | Sequence[float]) -> float:
    return float(np.mean(values)) if np.size(values) else float("nan")

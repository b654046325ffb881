"""How good is a world? Figures and pictures, real beside generated, on tracks, colours and words it was not trained on.

What every environment allows (next frame, codec, following recorded keys, drift) is here; what only a car can do is in
evaluate_car.py. The fields are those of `worldloop eval` in the command line's contract.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.train import evaluate_car, measure
from worldmodel.train.dataset import Dataset, Episode, write_json
from worldmodel.train.evaluate_car import SAMPLED, SHOWN, Drive, Progress
from worldmodel.train.playable import Playable
from worldmodel.train.record import Recording, prepare, record
from worldmodel.train.report import Picture, write_report

FOLLOWED = 100  # ticks of recorded keys that a generated game is compared over
RECORDED = 375  # frames to record per player
NEXT_FRAMES = 16  # next-frame predictions per player, spread over all episodes
BIN = 500  # ticks that drift is told for
WORSE = 1.5  # a player has collapsed where sharpness or contrast is this many times below its first ticks' …
LOST = 2.5  # … or this many times below the real game's


@dataclass(frozen=True)
class Settings:
    """What to try."""

    adapter: str
    size: int
    seed: int
    ticks: int  # of the long drive
    rollouts: int  # players of every trial


def evaluate(
    world: Playable,
    settings: Settings,
    data: Path | None = None,
    report: Path | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Try a world; returns the figures by scene, and writes report.json, index.html and pictures into `report`.

    data: a recorded data set to compare with; without one, fresh episodes are recorded by `settings.seed`.
    """
    with tempfile.TemporaryDirectory(prefix="worldloop-eval-") as folder:
        if data is None:
            progress("recording held-out episodes")
            data = Path(folder) / "episodes"
            _record(settings, data)
        dataset = Dataset(data)
        if tuple(dataset.info.actions) != world.actions:
            raise DatasetError(f"{data} has actions {dataset.info.actions}, the world has {list(world.actions)}")
        scenes: dict[str, dict[str, Any]] = {}
        pictures: list[Picture] = []
        for name, episodes in _by_scene(dataset).items():
            progress(f"{name}: next frames")
            scenes[name] = next_frames(world, dataset, episodes, settings)
            progress(f"{name}: following recorded keys")
            figures, followed = follow(world, dataset, episodes, settings)
            scenes[name] |= figures
            pictures.append(followed)
    found: dict[str, Any] = {"scenes": scenes}
    if settings.adapter == "car_racing":
        found |= _try_car(world, settings, scenes["car_racing"], pictures, progress)
    found["settings"] = vars(settings) | {"same_colour": evaluate_car.SAME_COLOUR}
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_json(report / "report.json", found)
        write_report(report, found, pictures)
    return found


def _record(settings: Settings, folder: Path) -> None:
    options: dict[str, Any] = {"split": "test"}
    if settings.adapter == "car_racing":
        options |= {"size": settings.size, "recolour": False}
    recording = Recording(
        settings.adapter,
        options,
        frames=RECORDED * settings.rollouts,
        seed=settings.seed,
        split="test",
        shard_frames=3000,
    )
    record(recording, folder, prepare(recording, folder), workers=2)


def _by_scene(dataset: Dataset) -> dict[str, list[Episode]]:
    """Episodes by the name of their scene; an environment without named scenes is one scene."""
    found: dict[str, list[Episode]] = {}
    for episode in dataset.episodes:
        first = dataset.read(episode.shard, "scene", episode.start, episode.start + 1)[0]
        name = dataset.scenes(episode.shard)[first].get("scene", dataset.info.adapter)
        found.setdefault(str(name), []).append(episode)
    return found


# -- what every environment allows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Recorded frames in a row within one scene, what led to each, and the scene's caption."""

    frames: NDArray[np.uint8]  # [n, height, width, 3]
    actions: NDArray[np.bool_]  # [n, actions]
    prompt: str


def _clips(
    dataset: Dataset, episodes: Sequence[Episode], length: int, count: int, rng: np.random.Generator
) -> list[Clip]:
    """`count` clips from all over the episodes, none of them over a change of scene."""
    clips: list[Clip] = []
    usable = [episode for episode in episodes if len(episode) >= length]
    for attempt in range(20 * count):
        if len(clips) == count or not usable:
            break
        episode = usable[attempt % len(usable)]
        start = episode.start + int(rng.integers(len(episode) - length + 1))
        rows = episode.shard, start, start + length
        scene = dataset.read(rows[0], "scene", *rows[1:])
        if scene.min() == scene.max():
            caption = dataset.scenes(episode.shard)[scene[0]]["captions"][0]
            actions = dataset.read(rows[0], "actions", *rows[1:]).astype(bool)
            clips.append(Clip(dataset.read(rows[0], "frames", *rows[1:]), actions, caption))
    if not clips:
        raise DatasetError(f"{dataset.folder}: no {length} frames in a row within one scene; record longer episodes")
    return clips


def next_frames(world: Playable, dataset: Dataset, episodes: Sequence[Episode], settings: Settings) -> dict[str, float]:
    """PSNR of the next frame, of repeating the last, and of the codec alone; errors of all frames pooled."""
    rng = np.random.default_rng([settings.seed, 1])
    real, made, before = [], [], []
    clips = _clips(dataset, episodes, world.context + 1, NEXT_FRAMES * settings.rollouts, rng)
    for at in range(0, len(clips), 32):
        part = clips[at : at + 32]
        frames, actions = np.stack([clip.frames for clip in part]), np.stack([clip.actions for clip in part])
        game = world.begin(frames[:, :-1], actions[:, :-1], [clip.prompt for clip in part], settings.seed + at)
        made.append(game.tick(actions[:, -1]))
        real.append(frames[:, -1])
        before.append(frames[:, -2])
    truth = np.concatenate(real)
    return {
        "psnr_next": measure.psnr(truth, np.concatenate(made)),
        "psnr_copy": measure.psnr(truth, np.concatenate(before)),
        "psnr_codec": measure.psnr(truth, world.through_codec(truth)),
    }


def follow(
    world: Playable, dataset: Dataset, episodes: Sequence[Episode], settings: Settings
) -> tuple[dict[str, float], Picture]:
    """Play recorded keys: does the picture turn when the recording does, and move as much?

    follow: correlation of the turn from frame to frame with the recording's, ticks 1 to 50. follow_ceiling: the same
    for the recording put through the codec.
    """
    rng = np.random.default_rng([settings.seed, 2])
    clips = _clips(dataset, episodes, world.context + FOLLOWED, settings.rollouts, rng)
    frames, actions = np.stack([clip.frames for clip in clips]), np.stack([clip.actions for clip in clips])
    now = world.context
    game = world.begin(frames[:, :now], actions[:, :now], [clip.prompt for clip in clips], settings.seed)
    real = frames[:, now:].swapaxes(0, 1)  # [ticks, players, …]
    made = np.stack([game.tick(actions[:, now + tick]) for tick in range(FOLLOWED)])
    early = real[:50]
    coded = world.through_codec(early.reshape(-1, *early.shape[2:])).reshape(early.shape)
    turn = _turn_of(dataset.info.adapter)
    turns = [_between(part, turn) for part in (early, made[:50], coded)]
    changes = [np.abs(np.diff(part[50:].astype(np.int16), axis=0)).mean() for part in (real, made)]
    ticks = [tick for tick in SHOWN if tick <= FOLLOWED]
    rows = [[part[tick - 1, player] for tick in ticks] for player in range(min(4, len(clips))) for part in (real, made)]
    return {
        "follow": _correlation(turns[0], turns[1]),
        "follow_ceiling": _correlation(turns[0], turns[2]),
        "motion_ratio": float(changes[1] / max(changes[0], 1e-6)),
    }, Picture("followed.png", f"Recorded keys, real above generated, at ticks {ticks}", rows)


def _turn_of(adapter: str) -> Callable[[measure.Picture, measure.Picture], float]:
    if adapter == "car_racing":
        return lambda before, after: measure.motion(before, after).rotation
    return horizontal_shift


def horizontal_shift(before: measure.Picture, after: measure.Picture) -> float:
    """Pixels by which the picture moved sideways, to the right positive.

    Phase correlation of the rows where a first-person view shows walls, not the floor and one's own hands; in ViZDoom
    its correlation with the true turn is 0.88 (basic) and 0.998 (health_gathering).
    """
    rows = slice(len(before) // 6, 3 * len(before) // 4)
    first, second = (cv2.cvtColor(picture[rows], cv2.COLOR_RGB2GRAY).astype(np.float32) for picture in (before, after))
    height, width = first.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    return float(cv2.phaseCorrelate(first, second, window)[0][0])


def _between(
    frames: NDArray[np.uint8], turn: Callable[[measure.Picture, measure.Picture], float]
) -> NDArray[np.float64]:
    """The turn from each frame to the next, [ticks - 1, players]."""
    return np.array([[turn(a, b) for a, b in zip(*step, strict=True)] for step in itertools.pairwise(frames)])


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def drift(real: Drive, made: Drive, ticks: int) -> dict[str, Any]:
    """How far the generated frames' statistics are from real ones, for each stretch of ticks; and collapsed players.

    distance_real: of the real frames of the same stretch, driven by the same driver, from all real frames.
    """
    width = min(BIN, max(ticks // 4, SAMPLED)) // SAMPLED
    truth = real.features.reshape(-1, real.features.shape[-1])
    bins = []
    for start in range(0, len(made.features) - width + 1, width):
        stretch = slice(start, start + width)
        distances = [
            measure.feature_distance(truth, game.features[stretch].reshape(-1, truth.shape[1])) for game in (made, real)
        ]
        bins.append(
            {
                "from": start * SAMPLED,
                "to": (start + width) * SAMPLED,
                "distance": distances[0],
                "distance_real": distances[1],
                "sharpness_ratio": float(made.sharpness[stretch].mean() / real.sharpness[stretch].mean()),
                "contrast_ratio": float(made.contrast[stretch].mean() / real.contrast[stretch].mean()),
            }
        )

    def ratio(distance: str) -> float:
        return float(max(stretch[distance] for stretch in bins) / max(bins[0][distance], 1e-6))

    return {
        "drift": bins,
        "drift_ratio": ratio("distance"),
        "drift_ratio_real": ratio("distance_real"),
        "collapsed": collapsed(made, real, width),
        "collapsed_real": collapsed(real, real, width),
    }


def collapsed(game: Drive, real: Drive, width: int) -> int:
    """Players that in some stretch have lost much of the sharpness or contrast of their first, or most of the real
    game's, whose colours are the same."""
    lost = np.zeros(game.sharpness.shape[1], bool)
    for made, true in ((game.sharpness, real.sharpness), (game.contrast, real.contrast)):
        least = np.maximum(made[:width].mean(0) / WORSE, true.mean(0) / LOST)
        for start in range(0, len(made) - width + 1, width):
            lost |= made[start : start + width].mean(0) < least
    return int(lost.sum())


# -- what only a car can do -------------------------------------------------------------------------------------------


def _try_car(
    world: Playable, settings: Settings, figures: dict[str, Any], pictures: list[Picture], progress: Progress
) -> dict[str, Any]:
    """All trials of evaluate_car.py; adds to the scene's figures and pictures and returns those of the prompts."""
    trial = (world, settings.size, settings.seed)
    progress("steering keys held")
    turns, rows = evaluate_car.steering(*trial, settings.rollouts)
    worst = min(turns, key=lambda key: turns[key]["sign"])
    figures |= {
        "turn_sign": turns[worst]["sign"],
        "turn_sign_real": turns[worst]["sign_real"],
        "turn_speed": min(turn["speed"] for turn in turns.values()),
        "response_ticks": max(turn["response_ticks"] for turn in turns.values()),
        "turns": turns,
    }
    pictures.append(
        Picture("steering.png", "Left held, then right: real above generated, ticks 1, 5, 10, 20, 30", rows)
    )
    progress("no key held")
    figures |= evaluate_car.coasting(*trial, settings.rollouts)
    driven, real, made = evaluate_car.closed_loop(*trial, settings.rollouts, settings.ticks, progress)
    figures |= driven | drift(real, made, settings.ticks)
    ticks = sorted(made.shown)
    players = range(settings.rollouts)
    pairs = [[shown[tick][i] for tick in ticks] for i in players for shown in (real.shown, made.shown)]
    pictures.append(Picture("driven.png", f"A driver that sees pixels, real above generated, at ticks {ticks}", pairs))
    progress("prompts")
    found, told = evaluate_car.prompts(*trial, count=4 * settings.rollouts)
    rows = [[one.before, one.after] for one in told[:16]]
    words = "; ".join(f"{i}: {one.prompt} ({one.final:.0f})" for i, one in enumerate(told[:16], 1))
    text = f"Before and 40 ticks after a prompt (in brackets the colours' distance). {words}"
    pictures.append(Picture("prompts.png", text, rows))
    return {"prompt": found}


def summary(found: dict[str, Any]) -> str:
    """The figures as lines for people."""
    lines = []
    for name, figures in found["scenes"].items():
        lines.append(name)
        lines += [f"  {key:<16} {_short(value)}" for key, value in figures.items()]
    if "prompt" in found:
        lines.append("prompt")
        lines += [f"  {key:<16} {_short(value)}" for key, value in found["prompt"].items()]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(_short(part) for part in value)
    return str(value)

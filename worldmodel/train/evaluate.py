"""How good is a world? Figures and pictures, real beside generated, on tracks, colours and words it was not trained on.

What every environment allows (next frame, codec, following recorded keys, drift) is here; what only a car can do is in
evaluate_car.py. The fields are those of `worldloop eval` in the command line's contract.
"""

from __future__ import annotations

import inspect
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
from worldmodel.train import evaluate_car, evaluate_places, evaluate_scenes, measure
from worldmodel.train.clips import clips_of
from worldmodel.train.dataset import Dataset, Episode, write_json
from worldmodel.train.drift import drift
from worldmodel.train.envs import adapter_class
from worldmodel.train.evaluate_car import SHOWN, Progress
from worldmodel.train.intervals import Statistic, interval, ratio_interval
from worldmodel.train.judge.hands import AFTER, BEFORE, balanced_accuracy, flow_strength, movements
from worldmodel.train.judge.judge import Judge
from worldmodel.train.judge.similarity import ssim
from worldmodel.train.playable import Playable
from worldmodel.train.record import Recording, prepare, record
from worldmodel.train.report import Curve, Picture, write_report

FOLLOWED = 100  # ticks of recorded keys that a generated game is compared over
RECORDED = 375  # frames to record per player
UNUSUAL_SEEDS = 1_000_000  # from here on
NEXT_FRAMES = 16  # next-frame predictions per player, spread over all episodes


CURVES = (
    ("drift, Fréchet distance of the eye's features from real frames", "spreads of real frames",
     {"generated": "frechet", "real": "frechet_real"}),
    ("drift, distance of gradient histograms from real frames", "spreads of real frames",
     {"generated": "distance", "real": "distance_real"}),
    ("motion, sharpness and contrast kept", "generated over real",
     {"optical flow": "flow_ratio", "sharpness": "sharpness_ratio", "contrast": "contrast_ratio"}),
    ("keys told from the picture", "balanced accuracy", {"generated": "keys", "real": "keys_real"}),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What to try."""

    adapter: str
    size: int
    seed: int
    ticks: int  # of the long drive
    rollouts: int  # players of every trial
    env_id: str = ""  # the environment, where the adapter is one for many


def evaluate(
    world: Playable,
    settings: Settings,
    data: Path | None = None,
    report: Path | None = None,
    progress: Progress = lambda text: None,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Try a world; returns the figures by scene, and writes report.json, index.html and pictures into `report`.

    data: a recorded data set to compare with; without one, fresh episodes are recorded by `settings.seed`.
    judge: without one, the one that ships for the environment; where none does, its figures are left out.
    """
    judge = judge or Judge.of(settings.adapter)
    if judge is None:
        progress(f"no judge for {settings.adapter} yet ('worldloop train judge'): no features, no keys, no diversity")
    elif judge.actions != world.actions:
        raise DatasetError(f"the judge knows the keys {list(judge.actions)}, the world has {list(world.actions)}")
    with tempfile.TemporaryDirectory(prefix="worldloop-eval-") as folder:
        if data is None:
            progress("recording held-out episodes")
            data = Path(folder) / "episodes"
            record_fresh(settings, data)
        dataset = Dataset(data)
        if tuple(dataset.info.actions) != world.actions:
            raise DatasetError(f"{data} has actions {dataset.info.actions}, the world has {list(world.actions)}")
        scenes: dict[str, dict[str, Any]] = {}
        pictures: list[Picture] = []
        by_scene = _by_scene(dataset)
        for name, episodes in by_scene.items():
            progress(f"{name}: next frames")
            scenes[name] = {"rollouts": settings.rollouts, "intervals": {}}
            _add(scenes[name], next_frames(world, dataset, episodes, settings, judge))
            progress(f"{name}: following recorded keys")
            figures, followed = follow(world, dataset, episodes, settings, judge)
            _add(scenes[name], figures)
            if len(by_scene) > 1:
                followed = Picture(f"followed-{name}.png", f"{name}: {followed.text}", followed.rows)
            pictures.append(followed)
        found: dict[str, Any] = {"scenes": scenes}
        several = len(by_scene) > 1 and judge and judge.scene and set(by_scene) <= set(judge.scenes)
        if judge and several and world.prompted:
            found["prompt"] = _switch_scenes(world, settings, dataset, by_scene, pictures, progress, judge)
    if settings.adapter == "car_racing":
        found |= _try_car(world, settings, scenes["car_racing"], pictures, progress, judge)
    found["settings"] = vars(settings) | {"same_colour": evaluate_car.SAME_COLOUR, "judge": judge and judge.about}
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        write_json(report / "report.json", found)
        write_report(report, found, pictures, curves(scenes))
    return found


def _add(scene: dict[str, Any], figures: dict[str, Any]) -> None:
    """Add a trial's figures to a scene's, and their intervals to its intervals."""
    scene["intervals"] |= figures.pop("intervals", {})
    scene |= figures


def curves(scenes: dict[str, dict[str, Any]]) -> list[Curve]:
    """What the report plots over ticks, of every scene that has a long drive."""
    found: list[Curve] = []
    for name, figures in scenes.items():
        bins = figures.get("drift", [])
        for title, unit, lines in CURVES:
            shown = {label: [entry.get(key) for entry in bins] for label, key in lines.items()}
            if bins and any(value is not None for values in shown.values() for value in values):
                bands = {"generated": [entry.get("frechet_interval") for entry in bins]} if "Fr" in title else {}
                ticks = [(entry["from"] + entry["to"]) / 2 for entry in bins]
                found.append(Curve(f"{name}-{len(found) + 1}.png", f"{name}: {title}", unit, ticks, shown, bands))
    return found


def record_fresh(settings: Settings, folder: Path) -> None:
    """Record episodes that no training has seen; what lies there already stays."""
    asked = {"split": "test", "size": settings.size, "recolour": False, "env_id": settings.env_id}
    takes = inspect.signature(adapter_class(settings.adapter)).parameters
    recording = Recording(
        settings.adapter,
        {key: value for key, value in asked.items() if key in takes},
        frames=RECORDED * settings.rollouts,
        # An environment without a split is recorded from seeds that nobody chooses for training.
        seed=settings.seed + (0 if "split" in takes else UNUSUAL_SEEDS),
        split="test",
        shard_frames=3000,
    )
    if missing := prepare(recording, folder, resume=folder.exists()):
        record(recording, folder, missing, workers=2)


def _by_scene(dataset: Dataset) -> dict[str, list[Episode]]:
    """Episodes by the name of their scene; an environment without named scenes is one scene."""
    found: dict[str, list[Episode]] = {}
    for episode in dataset.episodes:
        first = dataset.read(episode.shard, "scene", episode.start, episode.start + 1)[0]
        name = dataset.scenes(episode.shard)[first].get("scene", dataset.info.adapter)
        found.setdefault(str(name), []).append(episode)
    return found


# -- what every environment allows ------------------------------------------------------------------------------------


def next_frames(
    world: Playable, dataset: Dataset, episodes: Sequence[Episode], settings: Settings, judge: Judge | None = None
) -> dict[str, Any]:
    """The next frame from real history, the last one repeated, and the true one through the codec: PSNR (errors of
    all frames pooled), SSIM and the eye's distance, with intervals over the episodes.
    """
    rng = np.random.default_rng([settings.seed, 1])
    real, made, before = [], [], []
    clips = clips_of(dataset, episodes, world.context + 1, NEXT_FRAMES * settings.rollouts, rng)
    for at in range(0, len(clips), 32):
        part = clips[at : at + 32]
        frames, actions = np.stack([clip.frames for clip in part]), np.stack([clip.actions for clip in part])
        game = world.begin(frames[:, :-1], actions[:, :-1], [clip.prompt for clip in part], settings.seed + at)
        made.append(game.tick(actions[:, -1]))
        real.append(frames[:, -1])
        before.append(frames[:, -2])
    truth, last = np.concatenate(real), np.concatenate(before)
    group = np.unique([clip.episode for clip in clips], return_inverse=True)[1]
    groups = int(group.max()) + 1
    found: dict[str, Any] = {}
    intervals: dict[str, Any] = {}
    for name, shown in (("next", np.concatenate(made)), ("copy", last), ("codec", world.through_codec(truth))):
        found[f"psnr_{name}"] = measure.psnr(truth, shown)
        scores = {"ssim": ssim(truth, shown)} | ({"perceptual": judge.distance(truth, shown)} if judge else {})
        found |= {f"{kind}_{name}": float(score.mean()) for kind, score in scores.items()}
        errors = np.square(truth.astype(np.float32) - shown).mean((1, 2, 3))
        intervals[f"psnr_{name}"] = interval(_decibels(_mean_of(errors, group)), groups)
        for kind, score in scores.items():
            intervals[f"{kind}_{name}"] = interval(_mean_of(score, group), groups)
    return found | {"intervals": intervals}


def _mean_of(values: NDArray[np.floating], group: NDArray[np.intp]) -> Statistic:
    """The mean of all values that belong to the chosen groups."""
    sums, counts = np.bincount(group, values), np.bincount(group)
    return lambda chosen: float(sums[chosen].sum() / counts[chosen].sum())


def _decibels(error: Statistic) -> Statistic:
    return lambda chosen: float(10 * np.log10(255**2 / max(error(chosen), 1e-9)))


def follow(
    world: Playable, dataset: Dataset, episodes: Sequence[Episode], settings: Settings, judge: Judge | None = None
) -> tuple[dict[str, Any], Picture]:
    """Play recorded keys: does the picture turn when the recording does, move as much, and tell the keys?

    follow: correlation of the turn from frame to frame with the recording's, ticks 1 to 50. follow_ceiling: the same
    for the recording put through the codec.
    """
    rng = np.random.default_rng([settings.seed, 2])
    clips = clips_of(dataset, episodes, world.context + FOLLOWED, settings.rollouts, rng)
    frames, actions = np.stack([clip.frames for clip in clips]), np.stack([clip.actions for clip in clips])
    now = world.context
    game = world.begin(frames[:, :now], actions[:, :now], [clip.prompt for clip in clips], settings.seed)
    real = frames[:, now:].swapaxes(0, 1)  # [ticks, players, …]
    made = np.stack([game.tick(actions[:, now + tick]) for tick in range(FOLLOWED)])
    early = real[:50]
    coded = world.through_codec(early.reshape(-1, *early.shape[2:])).reshape(early.shape)
    turn = _turn_of(dataset.info.adapter)
    turns = [_between(part, turn) for part in (early, made[:50], coded)]
    changes = [np.abs(np.diff(part[50:].astype(np.int16), axis=0)).mean((2, 3, 4)) for part in (real, made)]
    flows = [_between(part[50:], flow_strength) for part in (real, made)]
    ticks = [tick for tick in SHOWN if tick <= FOLLOWED]
    rows = [[part[tick - 1, player] for tick in ticks] for player in range(min(4, len(clips))) for part in (real, made)]
    found: dict[str, Any] = {
        "follow": _correlation(turns[0], turns[1]),
        "follow_ceiling": _correlation(turns[0], turns[2]),
        "motion_ratio": float(changes[1].mean() / max(changes[0].mean(), 1e-6)),
        "flow_ratio": float(flows[1].mean() / max(flows[0].mean(), 1e-6)),
        "intervals": {
            "follow": interval(lambda chosen: _correlation(turns[0][:, chosen], turns[1][:, chosen]), len(clips)),
            "motion_ratio": ratio_interval(changes[1], changes[0]),
            "flow_ratio": ratio_interval(flows[1], flows[0]),
        },
    }
    if judge:
        shown = np.concatenate([frames[:, :now], made.swapaxes(0, 1)], 1)
        _add(found, keys_recovered(judge, actions, frames, shown, now))
    return found, Picture("followed.png", f"Recorded keys, real above generated, at ticks {ticks}", rows)


def keys_recovered(
    judge: Judge, actions: NDArray[np.bool_], real: NDArray[np.uint8], made: NDArray[np.uint8], now: int
) -> dict[str, Any]:
    """Which keys do the hands name from generated frames, and which from real ones? Balanced accuracy per key; and do
    generated ones move as steadily?

    actions: bool [players, ticks, keys]. real, made: uint8 [players, ticks, height, width, 3], equal before `now`.
    keys_share: mean accuracy over that on real frames. Guessing gets about half; keys_over_chance is 0 there.
    shake: how much movements change from tick to tick over how much real ones do, the mean of the hands' numbers.
    """
    first = max(now, BEFORE + 1)  # the first tick that has movements enough before it
    held = actions[:, first : actions.shape[1] - AFTER].swapaxes(0, 1)
    moves = [
        np.stack([movements(judge.adapter, player[first - BEFORE - 1 :]) for player in frames], 1)
        for frames in (real, made)
    ]
    told = [judge.held(moved) for moved in moves]
    jolts = [np.abs(np.diff(moved, axis=0)).mean(0) for moved in moves]  # [players, numbers] each
    right = [balanced_accuracy(held, said) for said in told]

    def accuracy(said: NDArray[np.bool_], chosen: NDArray[np.intp]) -> float:
        return float(np.nanmean(balanced_accuracy(held[:, chosen], said[:, chosen])))

    least = 0.01 * judge.hands.spread.numpy() + 1e-6  # some places hardly ever move in a real game

    def shake(chosen: NDArray[np.intp]) -> float:
        calm, shaken = (jolt[chosen].mean(0) for jolt in jolts)
        return float((shaken / np.maximum(calm, least)).mean())

    everyone = np.arange(len(actions))
    ceiling, reached = (accuracy(said, everyone) for said in told)
    return {
        "keys": {
            name: {"real": float(true), "generated": float(shown)}
            for name, true, shown in zip(judge.actions, *right, strict=True)
            if np.isfinite(true)
        },
        "keys_real": ceiling,
        "keys_share": reached / ceiling,
        "keys_over_chance": (reached - 0.5) / max(ceiling - 0.5, 1e-6),
        "shake": shake(everyone),
        "intervals": {
            "keys_share": interval(lambda chosen: accuracy(told[1], chosen) / accuracy(told[0], chosen), len(actions)),
            "shake": interval(shake, len(actions)),
        },
    }


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


def _switch_scenes(
    world: Playable,
    settings: Settings,
    dataset: Dataset,
    by_scene: dict[str, list[Episode]],
    pictures: list[Picture],
    progress: Progress,
    judge: Judge,
) -> dict[str, Any]:
    """The trial of evaluate_scenes.py; adds to the pictures."""
    progress("from scene to scene")
    rng = np.random.default_rng([settings.seed, 3])
    length, count = world.context + evaluate_scenes.SWITCHED, max(1, settings.rollouts // (len(by_scene) - 1))
    clips = {name: clips_of(dataset, episodes, length, count, rng) for name, episodes in by_scene.items()}
    found, rows = evaluate_scenes.switches(world, clips, settings.seed, judge)
    pictures.append(Picture("prompts.png", "Told another scene: before, and at ticks 1, 5, 10, 20, 40", rows))
    return found


# -- what only a car can do -------------------------------------------------------------------------------------------


def _try_car(
    world: Playable,
    settings: Settings,
    figures: dict[str, Any],
    pictures: list[Picture],
    progress: Progress,
    judge: Judge | None,
) -> dict[str, Any]:
    """All trials of evaluate_car.py and evaluate_places.py; adds to the scene's figures and pictures and returns those
    of the prompts, where the world listens to any.
    """
    trial = (world, settings.size, settings.seed)
    progress("steering keys held")
    turns, rows = evaluate_car.steering(*trial, settings.rollouts)
    worst = min(turns, key=lambda key: turns[key]["sign"])
    slowest = min(turns, key=lambda key: turns[key]["speed"])
    latest = max(turns, key=lambda key: turns[key]["response_ticks"])
    intervals = {key: turn.pop("intervals") for key, turn in turns.items()}
    figures["intervals"] |= {
        "turn_sign": intervals[worst]["sign"],
        "turn_speed": intervals[slowest]["speed"],
        "response_ticks": intervals[latest]["response_ticks"],
    }
    figures |= {
        "turn_sign": turns[worst]["sign"],
        "turn_sign_real": turns[worst]["sign_real"],
        "turn_speed": turns[slowest]["speed"],
        "response_ticks": turns[latest]["response_ticks"],
        "turns": turns,
    }
    pictures.append(
        Picture("steering.png", "Left held, then right: real above generated, ticks 1, 5, 10, 20, 30", rows)
    )
    progress("no key held")
    _add(figures, evaluate_car.coasting(*trial, settings.rollouts))
    progress("off the road and back")
    found_again, rows = evaluate_car.finding(*trial, settings.rollouts)
    _add(figures, found_again)
    text = "Steered off the road, then driven by pixels: real above generated, 0, 25, 50, 100 and 250 ticks after"
    pictures.append(Picture("found.png", text, rows))
    progress("gas held, nobody steers")
    strayed, rows = evaluate_car.unsteered(*trial, settings.rollouts)
    _add(figures, strayed)
    text = "Gas held, nobody steers: real above generated, at ticks 0, 25, 50 and so on to 150"
    pictures.append(Picture("unsteered.png", text, rows))
    progress("a full circle")
    remembered, rows = evaluate_places.memory(*trial, settings.rollouts)
    _add(figures, remembered)
    text = "A full circle: where it began and the same place again, in the real game, then in the generated one"
    pictures.append(Picture("circle.png", text, rows))
    if judge:
        dreamt, rows = evaluate_places.diversity(*trial, settings.rollouts, judge, progress)
        _add(figures, dreamt)
        text = "After 100 ticks: real tracks in the same colours above; below, one beginning with different noise"
        pictures.append(Picture("diversity.png", text, rows))
    driven, real, made = evaluate_car.closed_loop(*trial, settings.rollouts, settings.ticks, progress, judge)
    _add(figures, driven)
    _add(figures, drift(real, made, settings.ticks))
    ticks = sorted(made.shown)
    players = range(settings.rollouts)
    pairs = [[shown[tick][i] for tick in ticks] for i in players for shown in (real.shown, made.shown)]
    pictures.append(Picture("driven.png", f"A driver that sees pixels, real above generated, at ticks {ticks}", pairs))
    if not world.prompted:
        return {}
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
    for name, figures in [*found["scenes"].items(), ("prompt", found.get("prompt", {}))]:
        intervals = figures.get("intervals", {})
        lines += [name] if figures else []
        for key, value in figures.items():
            span = f" ({_short(intervals[key][0])} to {_short(intervals[key][1])})" if intervals.get(key) else ""
            lines += [f"  {key:<18} {_short(value)}{span}"] if key != "intervals" else []
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(_short(part) for part in value)
    return str(value)

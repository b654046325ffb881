"""Worlds of several scenes: does a prompt lead from one to another, and is a scene kept without one?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.train.clips import Clip
from worldmodel.train.evaluate_car import settled
from worldmodel.train.intervals import mean_interval
from worldmodel.train.judge.judge import Judge
from worldmodel.train.playable import Playable

SWITCHED = 40  # ticks after a prompt
LAST = 8  # ticks by which a scene is named in the end


def named(judge: Judge, frames: NDArray[np.uint8], scene: str) -> NDArray[np.bool_]:
    """Where the judge takes frames [ticks, players, height, width, 3] for this scene: [ticks, players]."""
    said = judge.scene_of(frames.reshape(-1, *frames.shape[2:]))
    return (said == judge.scenes.index(scene)).reshape(frames.shape[:2])


def switches(
    world: Playable, clips: Mapping[str, Sequence[Clip]], seed: int, judge: Judge
) -> tuple[dict[str, Any], list[list[NDArray[np.uint8]]]]:
    """Tell worlds in one scene a caption of another: do they get there, and how soon?

    recognised: share of switches after which the last frames are taken for the scene that was told; recognised_real:
    share of real frames that are taken for their own; kept: of generated ones at the end, where nothing was told.

    clips: of each scene, at least `world.context + SWITCHED` frames long; their keys are played, their captions told.
    Returns figures, and a row of pictures for each switch: before, then at ticks 1, 5, 10, 20, 40.
    """
    reached: list[NDArray[np.bool_]] = []  # of each player [ticks]
    stayed, real = [], []
    rows: list[list[NDArray[np.uint8]]] = []
    now = world.context
    for here, mine in clips.items():
        frames = np.stack([clip.frames[: now + SWITCHED] for clip in mine])
        actions = np.stack([clip.actions[: now + SWITCHED] for clip in mine])
        real.append(named(judge, frames[:, now:].swapaxes(0, 1), here))
        for there in clips:
            game = world.begin(frames[:, :now], actions[:, :now], [clip.prompt for clip in mine], seed)
            if there != here:
                game.say([clips[there][i % len(clips[there])].prompt for i in range(len(mine))])
            made = np.stack([game.tick(actions[:, now + tick]) for tick in range(SWITCHED)])
            shown = named(judge, made, there)
            if there == here:
                stayed.append(shown[-LAST:])
                continue
            reached += list(shown.T)
            rows.append([frames[0, now - 1], *(made[tick - 1, 0] for tick in (1, 5, 10, 20, SWITCHED))])
    arrived = np.array([player[-LAST:].mean() > 0.5 for player in reached])
    ticks = [tick for tick in map(settled, reached) if tick is not None]
    figures: dict[str, Any] = {
        "recognised": float(arrived.mean()),
        "recognised_real": float(np.mean(real)),
        "kept": float(np.mean(stayed)),
        "ticks": float(np.median(ticks)) if ticks else None,
        "ticks_90": float(np.quantile(ticks, 0.9)) if ticks else None,
        "prompts": len(reached),
        "intervals": {"recognised": mean_interval(arrived.astype(float))},
    }
    return figures, rows

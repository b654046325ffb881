"""Frames in a row from a recording, as the trials of evaluation go on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.train.dataset import Dataset, Episode


@dataclass(frozen=True)
class Clip:
    """Recorded frames in a row within one scene, what led to each, and the scene's caption."""

    frames: NDArray[np.uint8]  # [n, height, width, 3]
    actions: NDArray[np.bool_]  # [n, actions]
    prompt: str
    episode: int


def clips_of(
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
            clips.append(Clip(dataset.read(rows[0], "frames", *rows[1:]), actions, caption, episode.number))
    if not clips:
        raise DatasetError(f"{dataset.folder}: no {length} frames in a row within one scene; record longer episodes")
    return clips

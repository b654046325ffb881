"""Where the camera is: which facts of an environment tell it. One line an environment.

Recordings hold facts of every frame, so that what a camera did is known of old recordings, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.spec import CameraSpec
from worldmodel.train.dataset import Dataset

USUAL = 99  # per cent of ticks in which the camera moves no more than a condition of 1


@dataclass(frozen=True)
class Pose:
    """Names of facts: place on the ground, and heading, anticlockwise."""

    x: str
    y: str
    heading: str
    radians: float = 1.0  # that a heading of 1 is
    zero: float = 0.0  # radians from the x axis to where a heading of 0 looks


POSES = {  # by adapter
    "car_racing": Pose("x", "y", "yaw", zero=math.pi / 2),
    "vizdoom": Pose("x", "y", "angle", radians=math.pi / 180),
}


def camera_motion(dataset: Dataset) -> NDArray[np.float32]:
    """What the camera did in the tick that led to each frame, in stored order: [frames, 4].

    Whether it is known, which it is not of an episode's first frame; then how far it went ahead and to the right, as
    seen before the tick, in the environment's units, and how far it turned to the right, in radians.
    """
    pose = pose_of(dataset)
    columns = [dataset.info.facts.index(name) for name in (pose.x, pose.y, pose.heading)]
    parts = []
    for shard in range(len(dataset.shards)):
        episode = dataset.read(shard, "episode")
        facts = dataset.read(shard, "facts")[:, columns].astype(np.float64)
        heading = facts[:, 2] * pose.radians + pose.zero
        (x, y), turned = np.diff(facts[:, :2], axis=0).T, np.diff(heading)
        cos, sin = np.cos(heading[:-1]), np.sin(heading[:-1])
        to_the_right = (np.pi - turned) % (2 * np.pi) - np.pi
        moved = np.stack([x * cos + y * sin, x * sin - y * cos, to_the_right], 1)
        known = (episode[1:] == episode[:-1])[:, None]
        part = np.zeros((len(facts), 4), np.float32)
        part[1:] = np.concatenate([known, moved * known], 1)
        parts.append(part)
    return np.concatenate(parts)


def usual_motion(dataset: Dataset) -> CameraSpec:
    """The units of a camera condition that suit a recording, to three digits."""
    motion = camera_motion(dataset)
    moved = motion[motion[:, 0] > 0, 1:]
    if not len(moved):
        raise DatasetError(f"{dataset.folder}: no episode has two frames, so that no camera moves: record longer ones")
    amounts = np.percentile(np.stack([np.hypot(moved[:, 0], moved[:, 1]), np.abs(moved[:, 2])], 1), USUAL, axis=0)
    move, turn = (float(f"{amount:.3g}") or 1.0 for amount in amounts)
    return CameraSpec(move, turn)


def pose_of(dataset: Dataset) -> Pose:
    """The facts that tell this recording's camera."""
    info = dataset.info
    if info.adapter not in POSES:
        raise DatasetError(
            f"{dataset.folder} holds no camera: adapter {info.adapter!r} tells of none; known of {', '.join(POSES)}"
        )
    pose = POSES[info.adapter]
    if missing := [name for name in (pose.x, pose.y, pose.heading) if name not in info.facts]:
        raise DatasetError(f"{dataset.folder} lacks the fact {missing[0]!r}, which tells the camera: record it again")
    return pose

"""How far what a picture shows came since the picture before: what motion tracks are learned from.

An adapter tells it while it records (`Adapter.motion`), or it follows from where the camera is, which is known of old
recordings, too. The latter has one line an environment.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.spec import DragSpec
from worldmodel.train.dataset import Dataset
from worldmodel.train.envs import MOTION_CELL
from worldmodel.train.envs.poses import USUAL, camera_motion

Motion = NDArray[np.float16]


def picture_motion(dataset: Dataset, cell: int = MOTION_CELL) -> Motion:
    """[frames, rows, columns, 2] of cells of so many pixels, in stored order: how many pixels down and right what is
    amid the cell came since the frame before, NaN where it was not seen then or cannot be known.
    """
    info = dataset.info
    if info.adapter in FROM_POSES:
        return FROM_POSES[info.adapter](dataset, cell)
    if info.adapter not in RECORDED:
        raise DatasetError(
            f"{dataset.folder} holds no motion tracks: adapter {info.adapter!r} tells none; known of "
            f"{', '.join((*FROM_POSES, *RECORDED))}"
        )
    rows, columns = (
        np.minimum((np.arange(-(-side // cell)) + 0.5) * cell, side - 1).astype(int) // MOTION_CELL
        for side in (info.height, info.width)
    )
    return dataset.motion()[:, rows[:, None], columns]


def usual_drag(dataset: Dataset) -> DragSpec:
    """The unit of a track condition that suits a recording, to three digits."""
    largest = np.abs(picture_motion(dataset)).max(-1)
    known = largest[np.isfinite(largest)].astype(np.float32)
    if not len(known):
        raise DatasetError(f"{dataset.folder}: no episode has two frames, so that nothing moves: record longer ones")
    return DragSpec(float(f"{np.percentile(known, USUAL):.3g}") or 1.0)


def ground_from_above(dataset: Dataset, cell: int) -> Motion:
    """CarRacing: the ground seen from above, turned with the car, which itself stays in its place."""
    from worldmodel.train.envs.car_racing import CAR_FROM_TOP, CAR_HALF, VIEW_UNITS

    height, width = dataset.info.height, dataset.info.width
    scale = width / VIEW_UNITS
    down = (np.arange(-(-height // cell), dtype=np.float32)[:, None] + 0.5) * cell
    across = (np.arange(-(-width // cell), dtype=np.float32) + 0.5) * cell
    right, ahead = np.broadcast_arrays((across - width / 2) / scale, (height * CAR_FROM_TOP - down) / scale)
    under_car = (np.abs(right) < CAR_HALF[0]) & (np.abs(ahead) < CAR_HALF[1])
    known, went, aside, turned = camera_motion(dataset).T[:, :, None, None]
    cos, sin = np.cos(turned), np.sin(turned)
    was_right, was_ahead = aside + right * cos + ahead * sin, went - right * sin + ahead * cos
    was_down, was_across = height * CAR_FROM_TOP - was_ahead * scale, width / 2 + was_right * scale
    seen = (known > 0) & ~under_car & (was_down >= 0) & (was_down < height) & (was_across >= 0) & (was_across < width)
    moved = np.stack([down - was_down, across - was_across], -1)
    return np.where(seen[..., None], moved, np.nan).astype(np.float16)


FROM_POSES: dict[str, Callable[[Dataset, int], Motion]] = {"car_racing": ground_from_above}  # by adapter
RECORDED = ("vizdoom",)  # adapters whose `motion` tells it

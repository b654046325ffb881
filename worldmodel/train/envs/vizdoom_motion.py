"""Where what a Doom picture shows was in the picture before: exact, from the room's map and the places of what moves.

The engine's depth buffer has eight bits, about seven map units a step, which is too coarse for what is near. But a room
is one sector: flat floor and ceiling, and walls whose lines are known; so each pixel's depth follows from the map, and
the engine's labels confirm it: they tell walls, flats and each object apart. Objects are drawn as upright boards at
their place, which the engine tells by the object's number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vizdoom import GameState

Points = NDArray[np.float64]  # [..., 2], down and right, in pixels from the middle of the engine's picture

FOCUS = np.array([384.0, 320.0])  # pixels from the eye to a picture of 480 x 640, down and across: Doom's are 1.2 high
WALL, FLAT = 0, 1  # what labels say of pixels without an object


@dataclass(frozen=True)
class Sight:
    """What is needed of a moment. eye: x, y and height. angle: radians. labels: [480, 640]; boards: by object."""

    eye: Points
    angle: float
    floor: float
    ceiling: float
    walls: NDArray[np.float64]  # [walls, 4]
    labels: NDArray[np.uint8]
    boards: dict[int, tuple[int, NDArray[np.float64]]]  # label, and x, y, height

    @classmethod
    def of(
        cls, state: GameState, eye: NDArray[np.float64], angle: float, walls: NDArray[np.float64], own: str
    ) -> Sight:
        """own: name of the player's object, whose label is the weapon's: it hangs before the eye."""
        assert state.labels_buffer is not None and state.labels is not None, "labels are always asked for"
        boards = {
            label.object_id: (
                label.value,
                np.array([label.object_position_x, label.object_position_y, label.object_position_z]),
            )
            for label in state.labels
            if label.object_name != own
        }
        room = state.sectors[0]
        return cls(eye, np.radians(angle), room.floor_height, room.ceiling_height, walls, state.labels_buffer, boards)

    def label(self, points: Points) -> NDArray[np.int64]:
        """What is seen there; -1 outside of the picture."""
        middle = np.array(self.labels.shape) / 2
        at = np.floor(np.nan_to_num(points, nan=-1e6).clip(-1e6, 1e6) + middle).astype(np.int64)
        inside = np.logical_and(at >= 0, at < self.labels.shape).prod(-1, dtype=bool)
        row, column = np.moveaxis(np.where(inside[..., None], at, 0), -1, 0)
        return np.where(inside, self.labels[row, column].astype(np.int64), -1)

    def depth(self, points: Points) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """How far ahead the room lies behind these points, and whether it is a wall there."""
        down, right = np.moveaxis(points / FOCUS, -1, 0)[:, ..., None]  # the last axis is for the walls
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        ahead_x, ahead_y = cos + right * sin, sin - right * cos
        x1, y1, x2, y2 = self.walls.T
        with np.errstate(divide="ignore", invalid="ignore"):
            across = ahead_x * (y2 - y1) - ahead_y * (x2 - x1)
            reach = ((x1 - self.eye[0]) * (y2 - y1) - (y1 - self.eye[1]) * (x2 - x1)) / across
            part = ((x1 - self.eye[0]) * ahead_y - (y1 - self.eye[1]) * ahead_x) / across
            wall = np.where((reach > 0) & (part >= 0) & (part <= 1), reach, np.inf).min(-1)
            height = np.where(down > 0, self.eye[2] - self.floor, self.ceiling - self.eye[2])
            flat = (height / np.abs(down)).squeeze(-1)
        return np.minimum(wall, flat), wall < flat

    def place(self, points: Points, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """x, y and height of what lies so far behind these points."""
        down, right = np.moveaxis(points / FOCUS, -1, 0) * depth
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return np.stack([depth * cos + right * sin, depth * sin - right * cos, -down], -1) + self.eye

    def seen(self, places: NDArray[np.float64]) -> tuple[Points, NDArray[np.float64]]:
        """Where these are in the picture, and how far ahead; NaN behind the eye."""
        x, y, up = np.moveaxis(places - self.eye, -1, 0)
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        depth = np.where(x * cos + y * sin > 1, x * cos + y * sin, np.nan)
        return np.stack([-up, x * sin - y * cos], -1) / depth[..., None] * FOCUS, depth


def moved(before: Sight, now: Sight, points: Points) -> Points:
    """How far what is at these points came since `before`; NaN where it was not seen then, or cannot be known."""
    label = now.label(points)
    depth, wall = now.depth(points)
    was, _ = before.seen(now.place(points, depth))
    as_map = np.where(wall, WALL, FLAT)
    found = np.where(((label == as_map) & (before.label(was) == as_map))[..., None], was, np.nan)
    for number, (value, place) in now.boards.items():
        if number not in before.boards:
            continue
        (anchor, far), (anchor_then, far_then) = now.seen(place), before.seen(before.boards[number][1])
        was = anchor_then + (points - anchor) * (far / far_then)
        there = (label == value) & (before.label(was) == before.boards[number][0])
        found = np.where(there[..., None], was, found)
    return points - found

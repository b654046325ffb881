"""Camera poses: paths as text, projective position encoding, and ray maps.

A pose is a world-to-camera matrix [4, 4] in OpenCV's axes (x right, y down, z forward). A family may take poses as a
second attention branch (PRoPE, as in minWM) or as an image of rays (Plücker coordinates, as in LingBot-World and
Matrix-Game 3).
"""

from __future__ import annotations

import math
import re

import torch
import torch.nn.functional as nnf
from torch import Tensor

from worldmodel.errors import SpecError

STEP = 0.08  # units moved in one latent frame
TURN = math.radians(3.0)  # turned in one latent frame

MOVES: dict[str, tuple[float, float, float]] = {  # right, down, forward
    "w": (0, 0, STEP),
    "s": (0, 0, -STEP),
    "d": (STEP, 0, 0),
    "a": (-STEP, 0, 0),
    "u": (0, -STEP, 0),
    "dn": (0, STEP, 0),
}
TURNS: dict[str, tuple[float, float]] = {  # about the vertical axis, about the horizontal one
    "j": (-TURN, 0),
    "l": (TURN, 0),
    "i": (0, TURN),
    "k": (0, -TURN),
}


def path_views(path: str) -> Tensor:
    """World-to-camera matrices [1 + steps, 4, 4] float32 of a path such as "w*4,l*4".

    Identity first, then one each step.
    """
    pose = torch.eye(4, dtype=torch.float64)
    poses = [pose]
    for key in path_keys(path):
        pose = step(pose, [key])
        poses.append(pose)
    return torch.linalg.inv(torch.stack(poses)).float()


def path_keys(path: str) -> list[str]:
    """ "w*2,l" to ["w", "w", "l"]."""
    keys: list[str] = []
    for part in filter(None, (part.strip() for part in path.split(","))):
        found = re.fullmatch(r"([a-z]+)(?:\*(\d+))?", part)
        if not found or found[1] not in MOVES | TURNS:
            raise SpecError(
                f"camera path: cannot read '{part}': expected KEY*COUNT with KEY of {', '.join(MOVES | TURNS)}"
            )
        keys += [found[1]] * int(found[2] or 1)
    return keys


def step(pose: Tensor, keys: list[str]) -> Tensor:
    """Camera-to-world pose [4, 4] after one latent frame with these keys held; it turns first, then moves."""
    yaw = sum(TURNS[key][0] for key in keys if key in TURNS)
    pitch = sum(TURNS[key][1] for key in keys if key in TURNS)
    shift = torch.tensor([sum(MOVES[key][axis] for key in keys if key in MOVES) for axis in range(3)], dtype=pose.dtype)
    turned = pose[:3, :3] @ _about_y(yaw).to(pose) @ _about_x(pitch).to(pose)
    moved = pose.clone()
    moved[:3, :3] = turned
    moved[:3, 3] = pose[:3, 3] + turned @ shift.to(pose)
    return moved


def _about_y(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], dtype=torch.float64)


def _about_x(angle: float) -> Tensor:
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)


def projections(views: Tensor, lenses: Tensor) -> Tensor:
    """P = lens · view. views: [batch, frames, 4, 4]; lenses: [batch, frames, 3, 3], normalised focal lengths.

    The principal point is not used, as in the public code.
    """
    lens = torch.diag_embed(
        torch.stack([lenses[..., 0, 0], lenses[..., 1, 1], *(torch.ones_like(lenses[..., 0, 0]) for _ in range(2))], -1)
    )
    return lens @ views


def project(query: Tensor, camera: Tensor) -> Tensor:
    """Queries multiplied by Pᵀ. query: [batch, frames, T, H, D] in groups of four; camera: P, [batch, frames, 4, 4]."""
    return _tile(query, camera.transpose(-1, -2))


def to_camera(x: Tensor, camera: Tensor) -> Tensor:
    """Keys and values multiplied by P⁻¹, so that what a query gathers depends on relative poses only."""
    return _tile(x, torch.linalg.inv(camera.double()).to(camera.dtype))


def from_camera(x: Tensor, camera: Tensor) -> Tensor:
    """What was gathered, multiplied by the querying frame's P."""
    return _tile(x, camera)


def _tile(x: Tensor, matrix: Tensor) -> Tensor:
    batch, frames, tokens, heads, width = x.shape
    tiles = x.reshape(batch, frames, -1, 4)
    return (tiles @ matrix.to(x.dtype).transpose(-1, -2)).reshape(batch, frames, tokens, heads, width)


def rays(views: Tensor, lenses: Tensor, rows: int, columns: int) -> Tensor:
    """Plücker ray maps [batch, frames, 6, rows, columns]: direction d of each cell's ray, and origin × d.

    views: [batch, frames, 4, 4] world-to-camera; lenses: [batch, frames, 3, 3] with focal lengths and principal point
    in units of the picture's width and height.
    """
    poses = torch.linalg.inv(views.double()).to(views.dtype)
    y, x = torch.meshgrid(
        (torch.arange(rows, device=views.device, dtype=views.dtype) + 0.5) / rows,
        (torch.arange(columns, device=views.device, dtype=views.dtype) + 0.5) / columns,
        indexing="ij",
    )
    focal = torch.stack([lenses[..., 0, 0], lenses[..., 1, 1]], -1)[..., None, None, :]
    centre = torch.stack([lenses[..., 0, 2], lenses[..., 1, 2]], -1)[..., None, None, :]
    flat = (torch.stack([x, y], -1) - centre) / focal  # [batch, frames, rows, columns, 2]
    in_camera = torch.cat([flat, torch.ones_like(flat[..., :1])], -1)
    direction = nnf.normalize(torch.einsum("bfij,bfyxj->bfyxi", poses[..., :3, :3], in_camera), dim=-1)
    origin = poses[..., None, None, :3, 3].expand_as(direction)
    return torch.cat([direction, torch.linalg.cross(origin, direction)], -1).permute(0, 1, 4, 2, 3)

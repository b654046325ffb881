"""Camera poses: paths as text, projective position encoding, and ray maps.

A pose is a world-to-camera matrix [4, 4] in OpenCV's axes (x right, y down, z forward). A family may take poses as a
second attention branch (PRoPE, as in minWM) or as an image of rays (as in LingBot-World).
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


def rays(poses: Tensor, lens: tuple[float, float], height: int, width: int) -> Tensor:
    """Ray maps [batch, frames, 6, height, width]: of each pixel's ray where it begins, then its direction.

    poses: [batch, frames, 4, 4] camera-to-world. lens: focal lengths in picture widths and heights, the principal point
    in the middle. The public code (wan/utils/cam_utils.py of LingBot-World) calls this pair a Plücker embedding, and
    leaves the moment out.
    """
    y, x = torch.meshgrid(
        ((torch.arange(height, device=poses.device, dtype=poses.dtype) + 0.5) / height - 0.5) / lens[1],
        ((torch.arange(width, device=poses.device, dtype=poses.dtype) + 0.5) / width - 0.5) / lens[0],
        indexing="ij",
    )
    in_camera = nnf.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)
    direction = torch.einsum("bfij,yxj->bfiyx", poses[..., :3, :3], in_camera)
    return torch.cat([poses[..., :3, 3, None, None].expand_as(direction), direction], 2)


def ray_tokens(maps: Tensor, side: int, patch: tuple[int, int]) -> Tensor:
    """Ray maps [batch, frames, 6, height, width] as one row of numbers a token: [batch, frames, T, numbers].

    Each latent cell has side × side pixels and each token a patch of cells; numbers run channel, row and column in the
    cell, row and column in the patch.
    """
    batch, frames, channels, height, width = maps.shape
    (down, right), rows, columns = patch, height // side, width // side
    cells = maps.reshape(batch, frames, channels, rows // down, down, side, columns // right, right, side)
    return cells.permute(0, 1, 3, 6, 2, 5, 8, 4, 7).reshape(batch, frames, rows * columns // (down * right), -1)


def ray_steps(keys: list[list[str]], frames: int, starting: Tensor) -> Tensor:
    """Camera-to-world poses [batch, frames, 4, 4] float64, each in the camera of the frame before it (LingBot-World).

    keys: held by each player. starting: bool [batch], whose first frame has none before it. Lengths are in steps, as
    the public code divides them by the longest of a clip.
    """
    eye = torch.eye(4, dtype=torch.float64, device=starting.device)
    moved = torch.stack([step(eye, held) for held in keys])
    moved[:, :3, 3] /= STEP
    poses = moved[:, None].repeat(1, frames, 1, 1)
    poses[starting, 0] = eye
    return poses

"""A trained judge: the eye and the hands of one environment in one small file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from worldmodel.errors import CheckpointError
from worldmodel.train.frames import as_input
from worldmodel.train.judge.eye import Eye
from worldmodel.train.judge.hands import Hands, Moves, windows

WEIGHTS = Path(__file__).parent / "weights"  # ADAPTER.safetensors of the environments that ship with a judge
PAIRS = 8  # of pictures compared at a time: their features take 150 MB each


@dataclass(frozen=True)
class Judge:
    """Judges frames of one environment. `about` says on what it was trained and how well it does on real frames."""

    adapter: str
    height: int  # of the frames that it was trained on; others are resized
    width: int
    actions: tuple[str, ...]
    eye: Eye
    hands: Hands
    about: dict[str, Any]
    scenes: tuple[str, ...] = ()  # names, where the environment has several
    scene: nn.Linear | None = None  # tells them apart, see scenes.py

    @staticmethod
    def of(adapter: str) -> Judge | None:
        """The judge that ships for an environment, if one does."""
        path = WEIGHTS / f"{adapter}.safetensors"
        return Judge.load(path) if path.exists() else None

    @staticmethod
    def load(path: Path) -> Judge:
        """Read what `save` wrote."""
        try:
            with safe_open(path, "pt") as file:
                said = json.loads(file.metadata()["judge"])
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            eye, hands = Eye(), Hands(said.pop("numbers"), len(said["actions"]))
            said["scenes"] = tuple(said.get("scenes", ()))
            scene = nn.Linear(len(eye.spread), len(said["scenes"])) if said["scenes"] else None
            _parts(eye, hands, scene).load_state_dict(weights)
        except Exception as error:
            raise CheckpointError(f"{path}: not a judge ({error}); 'worldloop train judge' makes one") from error
        _parts(eye, hands, scene).requires_grad_(False).eval()
        return Judge(eye=eye, hands=hands, scene=scene, **said | {"actions": tuple(said["actions"])})

    def save(self, path: Path) -> None:
        """Write one file, weights in float16."""
        said = {name: getattr(self, name) for name in ("adapter", "height", "width", "actions", "about", "scenes")}
        said["numbers"] = len(self.hands.typical)
        weights = _parts(self.eye, self.hands, self.scene).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half() for name, value in weights.items()}, path, {"judge": json.dumps(said)})

    @torch.no_grad()
    def describe(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """`Eye.describe` of uint8 [n, height, width, 3]: float64 [n, features]."""
        parts = [self.eye.describe(part) for part in self._input(frames).split(64)]
        return torch.cat(parts).double().numpy()

    @torch.no_grad()
    def distance(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
        """`Eye.distance` of pairs, uint8 [n, height, width, 3] each: float64 [n]."""
        pairs = zip(self._input(first).split(PAIRS), self._input(second).split(PAIRS), strict=True)
        return torch.cat([self.eye.distance(a, b) for a, b in pairs]).double().numpy()

    @torch.no_grad()
    def held(self, moves: Moves) -> NDArray[np.bool_]:
        """The keys that seem to have been held, [ticks - BEFORE - AFTER, players, actions], see `windows`."""
        seen = torch.from_numpy(windows(moves))
        return (self.hands(seen.flatten(0, 1)) > 0).view(*seen.shape[:2], -1).numpy()

    @torch.no_grad()
    def scene_of(self, frames: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Which of `scenes` each of uint8 [n, height, width, 3] seems to show: int [n]."""
        assert self.scene is not None
        return self.scene(torch.from_numpy(self.describe(frames)).float()).argmax(1).numpy()

    def _input(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        if frames.shape[1:3] != (self.height, self.width):
            size = self.width, self.height
            frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        return as_input(torch.from_numpy(np.ascontiguousarray(frames)))


def _parts(eye: Eye, hands: Hands, scene: nn.Linear | None) -> nn.ModuleDict:
    """What is stored, by name."""
    parts: dict[str, nn.Module] = {"eye": eye, "hands": hands}
    return nn.ModuleDict(parts | ({"scene": scene} if scene else {}))

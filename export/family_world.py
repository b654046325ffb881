"""Write an imported checkpoint as a world file.

Its weights are stored as they are; torch plays it, so it holds no graphs.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from export.world_file import EPOCH, FORMAT
from worldmodel.families.family import FAMILIES
from worldmodel.families.importing import Import

WEIGHTS = "weights/checkpoint.safetensors"
PIECE = 1 << 22  # bytes


def write_family_world(path: Path, plan: Import, config: dict[str, Any]) -> str:
    """Load the weights strictly, then write NAME.world; gives its hash. config: what the family was recognised with."""
    world, family = plan.load(), FAMILIES[plan.family]
    about = world.about
    manifest = {
        "format": FORMAT,
        "name": path.stem,
        "title": about.title,
        "tick_hz": about.tick_hz,
        "height": about.height,
        "width": about.width,
        "preview": False,
        "licence": family.licence,
        "credits": f"{family.title}, {family.source}",
        "trained_on": "see its source",
        "actions": [{"name": button.name, "keys": list(button.keys)} for button in about.buttons],
        "prompts": [],
        "default_prompt": "",
        "default_start": "",
        "state": {
            name: {"shape": list(shape), "dtype": _type(dtype)} for name, (shape, dtype) in world.state_shapes().items()
        },
        "noise": {"shape": list(about.noise_shape)},
        "prompt": {"shape": list(about.prompt_shape)},
        "graphs": {},
        "starts": [],
        "spec": {"family": plan.family, "config": config},
    }
    del world  # the weights are read once more, to be written as they were
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        weights = Path(folder, "weights.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in plan.read().items()}, weights)
        manifest["files"] = {WEIGHTS: {"sha256": _digest(weights), "bytes": weights.stat().st_size}}
        raw = json.dumps(manifest, indent=1, sort_keys=True).encode()
        unfinished = Path(folder, "world.part")
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("manifest.json", EPOCH), raw)
            with (
                archive.open(zipfile.ZipInfo(WEIGHTS, EPOCH), "w", force_zip64=True) as out,
                weights.open("rb") as source,
            ):
                while piece := source.read(PIECE):
                    out.write(piece)
        os.replace(unfinished, path)
    return hashlib.sha256(raw).hexdigest()


def _type(dtype: torch.dtype) -> str:
    """numpy's name; bfloat16 is float32 outside torch, which holds it exactly."""
    return "float32" if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch.")).name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Write an imported checkpoint as a world file.

Its weights are stored as they are; torch plays it, so it holds no graphs. A start picture becomes a start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.world_file import EPOCH, FORMAT
from worldmodel.condition.start_picture import ClipVision, read_picture
from worldmodel.errors import SpecError
from worldmodel.families.family import FAMILIES, Playable
from worldmodel.families.importing import Import

WEIGHTS = "weights/checkpoint.safetensors"
PIECE = 1 << 22  # bytes


def write_family_world(
    path: Path,
    plan: Import,
    config: dict[str, Any],
    pictures: Mapping[str, Path] | None = None,
    encoder: ClipVision | None = None,
) -> str:
    """Load the weights strictly, then write NAME.world; gives its hash.

    config: what the family was recognised with. pictures: that the world can start from, by the starts' names, the
    first by default. encoder: makes their tokens.
    """
    world, family = plan.load(), FAMILIES[plan.family]
    about = world.about
    starts = {name: _start(world, picture, encoder) for name, picture in (pictures or {}).items()}
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
        "default_start": next(iter(starts), ""),
        "state": {
            name: {"shape": list(shape), "dtype": _type(dtype)} for name, (shape, dtype) in world.state_shapes().items()
        },
        "noise": {"shape": list(about.noise_shape)},
        "prompt": {"shape": list(about.prompt_shape)},
        "graphs": {},
        "starts": [{"name": name, "prompt": "", "file": _start_file(name)} for name in starts],
        "spec": {"family": plan.family, "config": config},
    }
    del world  # the weights are read once more, to be written as they were
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        files = {WEIGHTS: Path(folder, "weights.safetensors")}
        save_file({name: tensor.contiguous() for name, tensor in plan.read().items()}, files[WEIGHTS])
        for number, (name, start) in enumerate(starts.items()):
            files[_start_file(name)] = Path(folder, f"start{number}.safetensors")
            save_file(start, files[_start_file(name)])
        manifest["files"] = {
            name: {"sha256": _digest(file), "bytes": file.stat().st_size} for name, file in files.items()
        }
        raw = json.dumps(manifest, indent=1, sort_keys=True).encode()
        unfinished = Path(folder, "world.part")
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo("manifest.json", EPOCH), raw)
            for name, file in files.items():
                with (
                    archive.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True) as out,
                    file.open("rb") as source,
                ):
                    while piece := source.read(PIECE):
                        out.write(piece)
        os.replace(unfinished, path)
    return hashlib.sha256(raw).hexdigest()


def start_names(pictures: list[Path]) -> dict[str, Path]:
    """The pictures by the names of the starts that they become: those of their files, as far as a name may go."""
    named = {re.sub(r"[^A-Za-z0-9_]+", "-", picture.stem).strip("-")[:100] or "start": picture for picture in pictures}
    if len(named) < len(pictures):
        raise SpecError("two start pictures have the same name: rename one of the files")
    return named


def _start_file(name: str) -> str:
    return f"starts/{name}.safetensors"


def _start(world: Playable, picture: Path, encoder: ClipVision | None) -> dict[str, Tensor]:
    """The tensors of a start, as a world file holds them."""
    with torch.inference_mode():
        found = world.start_from(read_picture(picture, world.about.height, world.about.width), encoder)
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous()
        for name, tensor in found.items()
    }


def _type(dtype: torch.dtype) -> str:
    """numpy's name; bfloat16 is float32 outside torch, which holds it exactly."""
    return "float32" if dtype == torch.bfloat16 else np.dtype(str(dtype).removeprefix("torch.")).name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""From a recording to the spec of the world that shall be trained on it, kept as OUT/spec.json."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from worldmodel.errors import CheckpointError, SpecError
from worldmodel.spec import WorldSpec
from worldmodel.train.dataset import Dataset, DatasetInfo
from worldmodel.train.envs.motion import usual_drag
from worldmodel.train.envs.poses import usual_motion

# That a native world may be trained for, beside keys and prompt: a field of its spec, which the recording fills.
CONDITIONS: dict[str, Callable[[Dataset], Any]] = {"camera": usual_motion, "tracks": usual_drag}


def plan_world(data: Path, out: Path, changes: list[str]) -> WorldSpec:
    """The spec in OUT, or a new one: the recording says picture, actions and tick rate, `changes` what else differs."""
    info = DatasetInfo.read(data)
    spec = WorldSpec(
        name=out.name, height=info.height, width=info.width, tick_hz=info.tick_hz, actions=tuple(info.actions),
        keys=info.keys, environment=info.adapter,
        environment_id=info.options.get("env_id", ""), mirror=tuple((a, b) for a, b in info.mirror),
    )  # fmt: skip
    spec = changed(spec, changes)
    if (out / "spec.json").exists():
        kept = read_plan(out)
        if changes and kept != spec:
            raise SpecError(f"{out}/spec.json says otherwise than --set: that option belongs to a new folder")
        return kept
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(spec.to_json())
    return spec


def with_conditions(data: Path, out: Path, names: Sequence[str]) -> WorldSpec:
    """The spec in OUT, which from now on has these conditions, in the units that suit the recording."""
    spec = read_plan(out)
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise SpecError(f"no condition {unknown[0]!r}; there is: {', '.join(CONDITIONS)}")
    new = [name for name in CONDITIONS if name in names and getattr(spec, name) is None]
    if not new:
        return spec
    if any((out / f"world.{kind}").exists() for kind in ("safetensors", "resume.pt")):
        raise SpecError(
            f"{out} holds a world that knows no {new[0]}: copy its spec.json and codec.safetensors to a new folder and "
            "train there; --init begins from this world"
        )
    spec = dataclasses.replace(spec, **{name: CONDITIONS[name](Dataset(data)) for name in new})
    unfinished = out / f"spec.json.{os.getpid()}"  # processes of a team all write the same
    unfinished.write_text(spec.to_json())
    os.replace(unfinished, out / "spec.json")
    return spec


def read_plan(out: Path) -> WorldSpec:
    """The spec of a run folder."""
    try:
        return WorldSpec.from_json((out / "spec.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{out}/spec.json does not exist: 'worldloop train codec' comes first") from error


def changed(spec: WorldSpec, changes: list[str]) -> WorldSpec:
    """A copy of a spec with fields set, all at once: `window=8`, `generator.dim=256`, `codec.decoder_widths=(9,6)`."""
    fields = dataclasses.asdict(spec)
    for change in changes:
        path, _, text = change.partition("=")
        *parents, name = path.split(".")
        part: Any = fields
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if not isinstance(part, dict) or name not in part:
            known = ", ".join(part) if isinstance(part, dict) else ", ".join(fields)
            raise SpecError(f"--set {change}: no field {path!r}; there are {known}")
        try:
            part[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            part[name] = text
    return WorldSpec.from_json(json.dumps(fields))

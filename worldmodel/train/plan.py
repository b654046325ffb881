"""From a recording to the spec of the world that shall be trained on it, kept as OUT/spec.json."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

from worldmodel.errors import CheckpointError, SpecError
from worldmodel.spec import WorldSpec
from worldmodel.train.dataset import DatasetInfo


def plan_world(data: Path, out: Path, changes: list[str]) -> WorldSpec:
    """The spec in OUT, or a new one: picture, actions and tick rate from the recording, the rest defaults and
    `changes`.
    """
    info = DatasetInfo.read(data)
    spec = WorldSpec(
        name=out.name, height=info.height, width=info.width, tick_hz=info.tick_hz, actions=tuple(info.actions),
        keys=info.keys, environment=info.adapter, mirror=tuple((a, b) for a, b in info.mirror),
    )  # fmt: skip
    for change in changes:
        spec = changed(spec, change)
    if (out / "spec.json").exists():
        kept = read_plan(out)
        if changes and kept != spec:
            raise SpecError(f"{out}/spec.json says otherwise than --set: that option belongs to a new folder")
        return kept
    out.mkdir(parents=True, exist_ok=True)
    (out / "spec.json").write_text(spec.to_json())
    return spec


def read_plan(out: Path) -> WorldSpec:
    """The spec of a run folder."""
    try:
        return WorldSpec.from_json((out / "spec.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{out}/spec.json does not exist: 'worldloop train codec' comes first") from error


def changed(spec: Any, change: str) -> Any:
    """A copy of a spec with one field set: `window=8`, `generator.dim=256`, `codec.decoder_widths=(128,64)`."""
    path, _, text = change.partition("=")
    name, _, rest = path.partition(".")
    known = [f.name for f in dataclasses.fields(spec)]
    if name not in known:
        raise SpecError(f"--set {change}: no field {name!r}; there are {', '.join(known)}")
    if rest:
        return dataclasses.replace(spec, **{name: changed(getattr(spec, name), f"{rest}={text}")})
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    return dataclasses.replace(spec, **{name: value})

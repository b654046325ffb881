"""`worldloop list`: what there is to play, and what worlds can be built of."""

from __future__ import annotations

import importlib
from typing import Any

import typer

from runtime.backends import BACKENDS, installed
from runtime.cli.options import Json, finish
from runtime.errors import WorldloopError
from runtime.world import DEFAULT_WORLD, World, shipped_worlds

app = typer.Typer(add_completion=False)


@app.command()
def command(json: Json = False) -> None:
    """List worlds and backends; with the train extra also caches, schedules, codecs, conditions and families."""
    report: dict[str, Any] = {
        "worlds": [describe(name) for name in [*shipped_worlds(), "mock"]],
        "backends": [{"name": name, "installed": installed(package)} for name, (_, package) in BACKENDS.items()],
        **parts(),
    }
    finish(report, json, text(report))


def describe(name: str) -> dict[str, Any]:
    try:
        world = World.open(name)
    except WorldloopError as error:
        return {"name": name, "error": str(error)}
    manifest = world.manifest
    return {
        "name": name,
        "path": str(world.path) if world.path else None,
        "title": manifest.title,
        "default": name == DEFAULT_WORLD,
        "preview": manifest.preview,
        "licence": manifest.licence,
        "tick_hz": manifest.tick_hz,
        "width": manifest.width,
        "height": manifest.height,
        "actions": list(manifest.action_names),
        "prompts": list(manifest.prompts),
        "starts": [start.name for start in manifest.starts],
        "world_hash": world.hash,
    }


def parts() -> dict[str, Any]:
    """Caches, schedules, codecs, …: from worldmodel's own registry, which needs torch."""
    if not installed("torch") or importlib.util.find_spec("worldmodel.registry") is None:
        return {}
    return importlib.import_module("worldmodel.registry").listing()


def text(report: dict[str, Any]) -> str:
    lines = []
    for kind, entries in report.items():
        lines.append(f"{kind}:")
        lines += [f"  {line(entry)}" for entry in entries]
    return "\n".join(lines)


def line(entry: dict[str, Any]) -> str:
    """One entry, its name first; what is empty is left out."""
    hidden = ("name", "path", "world_hash")
    told = {key: value for key, value in entry.items() if key not in hidden and value is not False}
    shown = {key: value for key, value in told.items() if value not in (None, "", [])}
    return f"{entry['name']:<22} " + "  ".join(f"{key}: {readable(value)}" for key, value in shown.items())


def readable(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

"""`worldloop parity`: compare with recorded results of the public implementations, or a world's graphs with torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.backends import usable_backends
from runtime.cli.options import BackendName, Json, finish
from runtime.errors import CheckFailed, UsageError
from runtime.futures import futures, table
from runtime.world import World

app = typer.Typer(add_completion=False)


@app.command()
def command(
    paths: Annotated[list[str], typer.Argument(metavar="PATH…", help="golden folders, folders of them, or a world")],
    backend: BackendName = "auto",
    ticks: Annotated[
        int, typer.Option(help="of a world: play so long on every backend and precision, and print a table", min=0)
    ] = 0,
    json: Json = False,
) -> None:
    """Print the largest error of every output, in standard deviations of what is expected.

    Exit 1 above the tolerance.
    """
    if ticks:
        rows = {path: futures_of(path, ticks) for path in paths}
        finish({"futures": rows}, json, "\n\n".join(f"{path}\n\n{table(found)}" for path, found in rows.items()))
        return
    cases = [case for path in paths for case in (golden(Path(path)) if Path(path).is_dir() else [world(path, backend)])]
    finish({"cases": cases}, json, "\n".join(line for case in cases for line in text(case)))
    failed = [case["name"] for case in cases if not case["ok"]]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(cases)} cases differ from what was recorded: {', '.join(failed)}")


def golden(folder: Path) -> list[dict[str, Any]]:
    """Check a golden folder, or every golden folder inside it."""
    from worldmodel.families.golden import check, read_case

    folders = (
        [folder] if (folder / "meta.json").exists() else sorted(path.parent for path in folder.glob("*/meta.json"))
    )
    if not folders:
        raise UsageError(
            f"{folder}: no golden case here: expected a folder with meta.json, or a folder of such folders"
        )
    verdicts = [check(read_case(path)) for path in folders]
    return [
        {
            "name": verdict.name,
            "kind": verdict.kind,
            "ok": verdict.ok,
            "tolerance": verdict.tolerance,
            "outputs": {name: error if math.isfinite(error) else None for name, error in verdict.errors.items()},
            "missing": list(verdict.missing),
        }
        for verdict in verdicts
    ]


def world(name: str, backend: str) -> dict[str, Any]:
    """Check a world's graphs against the torch reference."""
    from runtime.parity import check_world

    return check_world(name, backend)


def futures_of(name: str, ticks: int) -> list[dict[str, Any]]:
    """The table of runtime/futures.py."""
    world = World.open(name)
    if "torch" not in usable_backends(world):
        raise UsageError(f"world {world.manifest.name!r} has no torch reference to compare with")
    return futures(world, ticks)


def text(case: dict[str, Any]) -> list[str]:
    verdict = "ok" if case["ok"] else "DIFFERS"
    lines = [f"{case['name']} ({case['kind']}): {verdict}, tolerance {case['tolerance']:g}"]
    lines += [
        f"  {'not finite' if error is None else f'{error:10.2e}'}  {name}" for name, error in case["outputs"].items()
    ]
    return lines + [f"  not computed: {name}" for name in case.get("missing", [])]

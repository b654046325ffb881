"""`worldloop parity`: compare with recorded results of the public implementations, or a world's graphs with torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.backends import usable_backends
from runtime.cli.options import BackendName, Json, finish
from runtime.errors import CheckFailed, UsageError, WorldloopError
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

    Exit 1 above the tolerance, 2 where a folder cannot be checked at all.
    """
    if ticks:
        rows = {path: futures_of(path, ticks) for path in paths}
        finish({"futures": rows}, json, "\n\n".join(f"{path}\n\n{table(found)}" for path, found in rows.items()))
        return
    folders, worlds = sorted_out(paths)
    cases, unreadable = golden([case for folder in folders for case in inside(folder)])
    for path in worlds:
        try:
            cases.append(world(path, backend))
        except WorldloopError as error:
            unreadable.append(str(error))
    if cases or not unreadable:
        finish({"cases": cases}, json, "\n".join(line for case in cases for line in text(case)))
    if unreadable:
        raise UsageError("; ".join(unreadable))
    failed = [case["name"] for case in cases if not case["ok"]]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(cases)} cases differ from what was recorded: {', '.join(failed)}")


def sorted_out(paths: list[str]) -> tuple[list[Path], list[str]]:
    """Golden folders, and worlds. A text file beside folders is passed over: `goldens/*` names their README, too."""
    folders = [Path(path) for path in paths if Path(path).is_dir()]
    passed = [path for path in paths if folders and Path(path).is_file() and Path(path).suffix in (".md", ".txt")]
    for path in passed:
        typer.echo(f"{path}: not a golden folder, passed over", err=True)
    return folders, [path for path in paths if not Path(path).is_dir() and path not in passed]


def inside(folder: Path) -> list[Path]:
    """A golden folder itself, or every golden folder in it."""
    if (folder / "meta.json").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/meta.json"))
    if not found:
        raise UsageError(
            f"{folder}: no golden case here: expected a folder with meta.json, or a folder of such folders"
        )
    return found


def golden(folders: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Check golden folders. One that cannot be checked does not keep the others from it: why not comes second."""
    if not folders:
        return [], []
    from worldmodel.families.golden import check, read_case

    checked, unreadable = [], []
    for folder in folders:
        try:
            verdict = check(read_case(folder))
        except WorldloopError as error:
            unreadable.append(str(error))
            continue
        checked.append(
            {
                "name": verdict.name,
                "kind": verdict.kind,
                "ok": verdict.ok,
                "tolerance": verdict.tolerance,
                "outputs": {name: error if math.isfinite(error) else None for name, error in verdict.errors.items()},
                "missing": list(verdict.missing),
            }
        )
    return checked, unreadable


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

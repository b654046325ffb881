"""`worldloop eval`: how good is a world? Figures and pictures, real beside generated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.cli.options import BackendName, Json, Precision, Seed, Threads, finish
from runtime.errors import UsageError
from runtime.world import DEFAULT_WORLD, World

if TYPE_CHECKING:
    from worldmodel.train.playable import Playable

app = typer.Typer(add_completion=False)


@app.command()
def command(
    world: Annotated[
        str,
        typer.Argument(metavar="WORLD", help="a shipped world's name, a .world file, or a training run's folder"),
    ] = DEFAULT_WORLD,
    data: Annotated[Path | None, typer.Option(help="a recorded data set (default: record fresh episodes)")] = None,
    ticks: Annotated[int, typer.Option(help="length of the long drive", min=50)] = 2000,
    rollouts: Annotated[int, typer.Option(help="players of every trial", min=1)] = 16,
    report: Annotated[Path | None, typer.Option(help="folder for report.json, index.html and pictures")] = None,
    judge: Annotated[Path | None, typer.Option(help="a judge by 'train judge' (default: the environment's)")] = None,
    seed: Seed = 0,
    backend: BackendName = "auto",
    threads: Threads = None,
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Try a world on tracks, colours and words that it was not trained on, beside the real environment."""
    from worldmodel.train import evaluate as trials
    from worldmodel.train.judge.judge import Judge

    playable, adapter, env_id, size = _open(world, backend, threads, precision)
    settings = trials.Settings(adapter, size, seed, ticks, rollouts, env_id)
    judging = Judge.load(judge) if judge else None
    found = trials.evaluate(playable, settings, data, report, lambda text: print(text, file=sys.stderr), judging)
    finish({"world": world, **found}, json, trials.summary(found))


def _open(name: str, backend: str, threads: int | None, precision: str) -> tuple[Playable, str, str, int]:
    """The world, the name of its environment's adapter and its id there, and the height of a frame."""
    if (Path(name) / "spec.json").exists():
        from worldmodel.train.playable import TorchWorld

        run = TorchWorld(Path(name), autocast=precision != "fp32")
        return run, run.spec.environment, run.spec.environment_id, run.spec.height
    from runtime.file_world import FileWorld

    world = World.open(name)
    about = world.manifest
    if about.adapter is None:
        raise UsageError(f"eval: world {about.name!r} names no real environment to compare with")
    return FileWorld(world, backend, threads, precision), about.adapter, about.environment or "", about.height

"""`worldloop eval`: how good is a world? Figures and pictures, real beside generated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.options import Json, Seed, finish
from runtime.errors import UsageError

app = typer.Typer()


@app.command()
def evaluate(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="a training run's folder")],
    data: Annotated[Path | None, typer.Option(help="a recorded data set; default: record fresh episodes")] = None,
    ticks: Annotated[int, typer.Option(help="length of the long drive", min=50)] = 2000,
    rollouts: Annotated[int, typer.Option(help="players of every trial", min=1)] = 16,
    report: Annotated[Path | None, typer.Option(help="folder for report.json, index.html and pictures")] = None,
    seed: Seed = 0,
    precision: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    as_json: Json = False,
) -> None:
    """Try a world on tracks, colours and words that it was not trained on."""
    if not (Path(world) / "spec.json").exists():
        raise UsageError(f"eval: {world} is not a training run (no spec.json in it)")
    if precision not in ("bf16", "fp32"):
        raise UsageError(f"eval: no precision {precision!r}; there are: bf16, fp32")
    from worldmodel.train import evaluate as trials
    from worldmodel.train.playable import TorchWorld

    playable = TorchWorld(Path(world), autocast=precision == "bf16")
    settings = trials.Settings(playable.spec.environment, playable.spec.height, seed, ticks, rollouts)
    found = trials.evaluate(playable, settings, data, report, lambda text: print(text, file=sys.stderr))
    finish(found, as_json, trials.summary(found))

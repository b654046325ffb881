"""`worldloop record`: turn an environment into a data set, or show one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from runtime.cli.options import Json, Seed, finish
from runtime.errors import UsageError
from runtime.machine import cores

app = typer.Typer(add_completion=False)

_ADAPTER_OF = {"CarRacing-v3": "car_racing", "racer": "car_racing", "doom": "vizdoom"}


@app.command()
def command(
    env: Annotated[str, typer.Argument(help="an adapter's name or any Gymnasium id; with --show: the data set")],
    picture: Annotated[Path | None, typer.Argument(help="with --show: the .png or .mp4 to write")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the data set")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="frames to record")] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="about so many episodes of 300 to 600 ticks instead")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; default: one per core")] = None,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="train or test: disjoint tracks, names and templates")] = "train",
    size: Annotated[
        int | None, typer.Option(min=16, help="height and width of a frame; default: the adapter's")
    ] = None,
    palette: Annotated[
        int | None, typer.Option(min=0, help="racer: another number records the same drives in other colours")
    ] = None,
    worn: Annotated[bool, typer.Option(help="racer: the same drives along a worn road, to learn to mend it")] = False,
    tracks: Annotated[
        bool,
        typer.Option(help="doom: also where everything in the picture came from, to train with --condition tracks"),
    ] = False,
    minutes: Annotated[float | None, typer.Option(help="begin no further shard after this time")] = None,
    resume: Annotated[bool, typer.Option(help="go on with the data set in --out")] = False,
    show: Annotated[bool, typer.Option(help="write a contact sheet or a video of a data set")] = False,
    json: Json = False,
) -> None:
    """Record a data set: `record ENV --out DIR --frames N`. Show one: `record --show DIR OUT.png|OUT.mp4`."""
    if show:
        _show(Path(env), picture)
        return
    if out is None:
        raise UsageError("record: say where with --out DIR")
    if (frames is None) == (episodes is None):
        raise UsageError("record: say how much with either --frames N or --episodes N")
    if split not in ("train", "test"):
        raise UsageError(f"record: --split {split!r}: known are train, test")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from worldmodel.train.record import EPISODE_TICKS, Recording, prepare, record

    adapter, options = _adapter(env, split, size, palette, worn, tracks)
    total = frames if frames is not None else int(episodes or 0) * sum(EPISODE_TICKS) // 2
    recording = Recording(adapter=adapter, options=options, frames=total, seed=seed, split=split)
    missing = prepare(recording, out, resume)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"recording {env}", total=sum(frames for _, frames in missing))
        statistics = record(
            recording,
            out,
            missing,
            workers=workers or cores(),
            minutes=minutes,
            progress=lambda done: bar.update(task, completed=done),
        )
    report = {"out": str(out), "step": statistics["frames"], "seconds": statistics["seconds"], **statistics}
    finish(report, json, "\n".join(f"{name:<20} {value}" for name, value in statistics.items()))


def _show(dataset: Path, picture: Path | None) -> None:
    if picture is None:
        raise UsageError("record --show: say which file to write, for example record --show DIR sheet.png")
    from worldmodel.train import contact_sheet

    contact_sheet.show(dataset, picture)
    print(picture)


def _adapter(
    env: str, split: str, size: int | None, palette: int | None, worn: bool, tracks: bool
) -> tuple[str, dict[str, object]]:
    """The adapter for ENV and its constructor's arguments: of those asked for, the ones that it takes."""
    from worldmodel.train.envs import ADAPTERS, adapter_class

    name = _ADAPTER_OF.get(env, env)
    options: dict[str, object] = {}
    if name not in ADAPTERS:
        name, options = "gymnasium", {"env_id": env}
    takes = inspect.signature(adapter_class(name)).parameters
    if size is not None and "size" not in takes:
        raise UsageError(f"record: {env} has one frame size; leave --size out")
    if palette is not None and "palette" not in takes:
        raise UsageError(f"record: {env} has no other colours; leave --palette out")
    if worn and "worn" not in takes:
        raise UsageError(f"record: nothing of {env} can be worn; leave --worn out")
    if tracks and "tracks" not in takes:
        raise UsageError(f"record: {env} has no tracks to record beside its facts; leave --tracks out")
    asked = {"split": split, "size": size, "palette": palette, "worn": worn or None, "tracks": tracks or None}
    options |= {key: value for key, value in asked.items() if key in takes and value is not None}
    return name, options

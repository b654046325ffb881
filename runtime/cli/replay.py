"""`worldloop replay`: execute a recorded game again, check that it is the same, or turn it into a video."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from runtime.backends import load_backend, usable_backends
from runtime.bindings import Controls
from runtime.cli.options import Json, finish
from runtime.clock import Clock
from runtime.errors import BackendError, CheckFailed
from runtime.presenters import VideoFile
from runtime.replay import Header, agrees, open_replay, play_again, same_machine
from runtime.session import Session
from runtime.world import World

app = typer.Typer(add_completion=False)


@app.command()
def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a replay made with --record")],
    verify: Annotated[
        bool, typer.Option("--verify", help="compare with the recorded checksums; exit code 1 if they differ")
    ] = False,
    video: Annotated[Path | None, typer.Option(help="write a video: .mp4, .mkv, .mov or .gif", dir_okay=False)] = None,
    world: Annotated[str | None, typer.Option(help="the world file, if it has moved since")] = None,
    json: Json = False,
) -> None:
    """Play a replay back: in a window, or with --verify and --video as fast as it goes."""
    replay = open_replay(file)
    if replay.repaired_tail_bytes:
        print(
            f"worldloop: {file}: cut away {replay.repaired_tail_bytes} bytes of an unfinished record", file=sys.stderr
        )
    session = session_of(replay.header, World.open(world or replay.header.world))
    exact = same_machine(replay.header, session)
    if verify and not exact:
        print(
            "worldloop: recorded with another backend, CPU or version; comparing frames with a tolerance",
            file=sys.stderr,
        )
    differs: int | None = None
    with ExitStack() as stack:
        out = stack.enter_context(VideoFile(video, replay.header.tick_hz)) if video else None
        show = None if verify or video else stack.enter_context(window_for(session))
        for played in play_again(replay, session):
            if out:
                out.show(played.frame)
            if differs is None and not agrees(played, exact):
                differs = played.index
            if show and not show(played.frame):
                break
    report = {
        "ticks": replay.ticks,
        "verified": differs is None if verify else None,
        "first_difference": differs,
        "exact": exact,
        "repaired_tail_bytes": replay.repaired_tail_bytes,
    }
    finish(report, json, summary(report))
    if verify and differs is not None:
        raise CheckFailed(f"{file}: tick {differs} is the first checked one that differs from the recording")


def session_of(header: Header, world: World) -> Session:
    """A session as the replay began, on its own backend if this machine has it."""
    name = header.backend if header.backend in usable_backends(world) else "auto"
    try:
        backend = load_backend(world, name, threads=header.threads, precision=header.precision)
    except BackendError:
        backend = load_backend(world, threads=header.threads)
    return Session(world, backend=backend, seed=header.seed, start=header.start, prompt=header.prompt)


@contextmanager
def window_for(session: Session) -> Iterator[Callable[[np.ndarray], bool]]:
    """Shows frames in a window at the world's own rate; the function gives False once the window is closed."""
    from runtime.loop import Status
    from runtime.window import Window

    manifest = session.world.manifest
    clock = Clock(manifest.tick_hz)
    title, size = f"replay of {manifest.title}", (manifest.width, manifest.height)
    with Window(title, size, Controls([]), [], clock.now) as window:
        clock.sleep = window.sleep

        def show(frame: np.ndarray) -> bool:
            clock.wait()
            window.requests()
            tick, prompt, seed = session.tick_number, session.prompt, session.seed
            window.show(frame, Status(tick, 0.0, clock.late_ticks, None, prompt, seed, paused=False))
            return window.is_open

        yield show


def summary(report: dict) -> str:
    words = {None: "", True: ", the same frames as recorded", False: ", not the frames that were recorded"}
    how = "" if report["exact"] or report["verified"] is None else " (within a tolerance)"
    return f"{report['ticks']} ticks{words[report['verified']]}{how}"

"""`worldloop replay`: execute a recorded game again, check that it is the same, or turn it into a video."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from runtime.backends import load_backend, usable_backends
from runtime.bindings import Controls
from runtime.cli.options import Json, finish
from runtime.clock import Clock
from runtime.errors import BackendError, CheckFailed, UsageError
from runtime.playback import FASTEST, KEYS, Playback, watch
from runtime.presenters import VideoFile
from runtime.replay import Header, Replay, agrees, open_replay, play_again, same_machine
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
    begin: Annotated[
        int, typer.Option("--from", help="show it from this tick on, in the window or the video", min=0)
    ] = 0,
    speed: Annotated[int, typer.Option(help="times the world's own rate, in the window", min=1, max=FASTEST)] = 1,
    json: Json = False,
) -> None:
    """Play a replay back: in a window, or with --verify and --video as fast as it goes. Keys: left and right go 5 s
    back and on, up and down change the speed, P pauses, . steps, R begins again, H shows figures, Esc leaves."""
    if speed > 1 and (verify or video):
        raise UsageError("--speed is for the window; --verify and --video go as fast as they can: leave it out")
    if begin and verify and not video:
        raise UsageError("--from is for the window and the video; --verify checks every tick: leave it out")
    replay = open_replay(file)
    if begin and begin >= replay.ticks:
        raise UsageError(f"--from {begin}: the replay has {replay.ticks} ticks, give less")
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
    if verify or video:
        differs = execute_all(replay, session, video, begin, exact)
    else:
        differs = in_window(Playback(replay, session), begin, speed, exact)
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


def execute_all(replay: Replay, session: Session, video: Path | None, begin: int, exact: bool) -> int | None:
    """Every tick, as fast as it goes; the first that differs. video: of the ticks from `begin` on."""
    differs: int | None = None
    with ExitStack() as stack:
        out = stack.enter_context(VideoFile(video, replay.header.tick_hz)) if video else None
        for played in play_again(replay, session):
            if out and played.index >= begin:
                out.show(played.frame)
            if differs is None and not agrees(played, exact):
                differs = played.index
    return differs


def in_window(playback: Playback, begin: int, speed: int, exact: bool) -> int | None:
    from runtime.window import Window

    manifest, controls = playback.session.world.manifest, Controls(KEYS)
    clock = Clock(manifest.tick_hz)
    with Window(f"replay of {manifest.title}", (manifest.width, manifest.height), controls, [], clock.now) as window:
        clock.sleep = window.sleep
        return watch(playback, controls, window, clock, exact=exact, begin=begin + 1, speed=speed)


def summary(report: dict) -> str:
    words = {None: "", True: ", the same frames as recorded", False: ", not the frames that were recorded"}
    how = "" if report["exact"] or report["verified"] is None else " (within a tolerance)"
    return f"{report['ticks']} ticks{words[report['verified']]}{how}"

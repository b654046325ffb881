"""`worldloop play`: open a world in a window, or play it without one (--headless) for scripts and tests."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from runtime.actions_file import read_actions
from runtime.bindings import Controls
from runtime.bindings_file import bindings_path, read_bindings, write_bindings
from runtime.cli.options import BackendName, Json, Precision, Seed, Threads, WorldName, finish, milliseconds
from runtime.clock import Clock
from runtime.errors import UsageError
from runtime.governor import Wishes
from runtime.loop import Companion, Desk, Report, beside, play, play_script
from runtime.presenters import Checksum, FramesFile, Presenter, VideoFile
from runtime.replay import Recorder
from runtime.saves import Saves
from runtime.session import Session, fits
from runtime.world import DEFAULT_WORLD, World

app = typer.Typer(add_completion=False)


@app.command()
def command(
    world: WorldName = DEFAULT_WORLD,
    headless: Annotated[bool, typer.Option("--headless", help="no window; needs --ticks or --actions")] = False,
    ticks: Annotated[int | None, typer.Option(help="how many ticks to play without a window", min=0)] = None,
    actions: Annotated[Path | None, typer.Option(help="actions file: one tick a line, action names")] = None,
    video: Annotated[Path | None, typer.Option(help="write a video: .mp4, .mkv, .mov or .gif", dir_okay=False)] = None,
    frames: Annotated[Path | None, typer.Option(help="write all frames: .npz", dir_okay=False)] = None,
    record: Annotated[Path | None, typer.Option(help="write a replay", dir_okay=False)] = None,
    start: Annotated[str | None, typer.Option(help="which of the world's starts")] = None,
    prompt: Annotated[str | None, typer.Option(help="what the world should look like")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="show the real environment beside it (train extra)")
    ] = False,
    policy: Annotated[
        str, typer.Option(help="on a machine that is too slow: slow (the world), skip (frames), degrade (steps)")
    ] = "slow",
    answer: Annotated[str, typer.Option(help="how a key meets frames in flight: auto, rollback, late or off")] = "auto",
    blend: Annotated[int, typer.Option(help="ticks in which a prompt typed in the window is reached", min=1)] = 1,
    rewind_mb: Annotated[float, typer.Option(help="memory for rewinding and branches, in a window", min=0)] = 256,
    seed: Seed = 0,
    threads: Threads = None,
    backend: BackendName = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Play a world. Keys: as the world names them; Tab types a prompt, Backspace rewinds, F3 forks, F4 goes to the next
    branch, F5 and F9 save and load, F7 saves under a name, F6 goes through saved games, F2 chooses keys, P pauses,
    . steps, R restarts, H shows figures, Esc leaves."""
    opened = World.open(world)
    script = read_actions(actions, opened.manifest) if actions else []
    check_usage(headless, ticks, actions, frames)
    wanted = len(script) if ticks is None else ticks
    session = Session(
        opened, backend=backend, seed=seed, start=start, prompt=prompt, threads=threads, precision=precision,
        rewind_mb=0 if headless else past_memory(opened, rewind_mb),
    )  # fmt: skip
    if opened.manifest.preview:
        print(f"worldloop: {opened.manifest.name} is a preview, still in training", file=sys.stderr)
    companion = real_environment(opened, seed) if compare else None
    checksum = Checksum()
    with ExitStack() as stack:
        presenters: list[Presenter] = [checksum]
        if video:
            presenters.append(stack.enter_context(VideoFile(video, opened.manifest.tick_hz)))
        if frames:
            presenters.append(stack.enter_context(FramesFile(frames, wanted, frame_shape(opened, companion))))
        desk = Desk(blend=blend)
        if record:
            desk.recorder = Recorder(record, session, world)
            stack.callback(desk.recorder.close)
        if headless:
            report = play_script(session, script, wanted, desk, presenters, companion)
        else:
            report = in_window(session, desk, presenters, companion, Wishes(answer, policy))
    result = {
        "world": opened.manifest.name,
        "world_hash": opened.hash,
        "backend": session.backend.name,
        "precision": session.backend.precision,
        "threads": session.backend.threads,
        "seed": seed,
        "ticks": len(report.tick_s),
        "tick_ms": {**milliseconds(report.tick_s), "max": round(max(report.tick_s, default=0.0) * 1000, 3)},
        "late_ticks": report.late_ticks,
        "frames_crc32": f"{checksum.value:08x}",
        "torch_imported": "torch" in sys.modules,
    }
    finish(result, json, summary(result))


def check_usage(headless: bool, ticks: int | None, actions: Path | None, frames: Path | None) -> None:
    if headless and ticks is None and actions is None:
        raise UsageError("--headless needs to know for how long: give --ticks N or --actions FILE")
    if not headless and (ticks is not None or actions or frames):
        raise UsageError("--ticks, --actions and --frames are for --headless: add it, or leave them out")


def in_window(
    session: Session, desk: Desk, presenters: list[Presenter], companion: Companion | None, wishes: Wishes
) -> Report:
    from runtime.window import Window

    manifest = session.world.manifest
    clock = Clock(manifest.tick_hz)
    controls = Controls(manifest.actions)
    bindings = bindings_path()
    controls.bind(read_bindings(bindings, manifest))
    desk.saves = Saves.of(session.world)
    size = manifest.width * (2 if companion else 1), manifest.height

    def rebound() -> None:
        write_bindings(bindings, manifest, controls.keys)
        window.notify(f"keys saved in {bindings}")

    with Window(manifest.title, size, controls, manifest.prompts, clock.now, rebound) as window:
        clock.sleep = window.sleep
        if wishes.policy == "degrade" and "tick_fast" not in session.graphs:
            window.notify(f"{manifest.name} has no graph of fewer steps: too slow, it slows down instead")
        if resumed := desk.resume(session):
            window.notify(resumed)
        return play(session, controls, window, clock, desk, presenters, companion, wishes)


def past_memory(world: World, rewind_mb: float) -> float:
    """What is asked, or nothing where not even a few states of this world would fit."""
    if rewind_mb > 0 and not fits(world, rewind_mb):
        print(f"worldloop: no rewinding: a state of {world.manifest.name} needs more of --rewind-mb", file=sys.stderr)
        return 0
    return rewind_mb


def frame_shape(world: World, companion: Companion | None) -> tuple[int, ...]:
    shape = world.manifest.height, world.manifest.width, 3
    return shape if companion is None else beside(np.zeros(shape, np.uint8), companion(frozenset())).shape


def real_environment(world: World, seed: int) -> Companion:
    """The environment that the world imitates, driven by the same actions."""
    from runtime.compare import open_environment

    return open_environment(world, seed)


def summary(result: dict) -> str:
    ms = result["tick_ms"]
    return (
        f"{result['world']}: {result['ticks']} ticks, {ms['p50']} ms each (p99 {ms['p99']} ms), "
        f"{result['late_ticks']} late, on {result['backend']} {result['precision']}, {result['threads']} threads; "
        f"frames {result['frames_crc32']}"
    )

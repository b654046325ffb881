"""How evenly ticks come: our clock beside pygame's, alone and while something else works in the same program.

    python benchmarks/pacing.py --plot docs/pacing.png

Error: how far a tick came from one period after the one before (ms). Drift: how far the last tick is from first + n
periods. Beside: nothing; a world that ticks in a thread (`tick_async`, which computes without Python's lock); plain
Python in a thread, which holds the lock; the same in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event

import numpy as np

from runtime.clock import Clock
from runtime.session import Session
from runtime.world import World


def measure(wait, hz: float, seconds: float, tick) -> tuple[np.ndarray, float]:
    """Errors of all gaps in ms, and the drift in ms. wait: returns when the next tick is due."""
    times = []
    wait()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait()
        times.append(time.perf_counter())
        tick()
    gaps = np.diff(times) * 1000
    drift = (times[-1] - times[0]) * 1000 - (len(times) - 1) * 1000 / hz
    return np.abs(gaps - 1000 / hz), drift


@contextmanager
def nothing() -> Iterator[Callable[[], object]]:
    yield lambda: None


@contextmanager
def a_world_in_a_thread(name: str = "racer") -> Iterator[Callable[[], object]]:
    """Asked for a frame in every tick of the host, which never waits for it. One thread: the clock needs a core."""
    world = Session(World.open(name), threads=1)
    yield lambda: world.tick_async({"gas"})
    world.stop_async()


@contextmanager
def plain_Python_in_a_thread() -> Iterator[Callable[[], object]]:
    stop = threading.Event()
    thread = threading.Thread(target=count_until, args=(stop,))
    thread.start()
    yield lambda: None
    stop.set()
    thread.join()


@contextmanager
def plain_Python_in_a_process() -> Iterator[Callable[[], object]]:
    fresh = multiprocessing.get_context("spawn")
    never = fresh.Event()  # kept here: one that is collected takes the process with it
    process = fresh.Process(target=count_until, args=(never,), daemon=True)
    process.start()
    yield lambda: None
    if not process.is_alive():
        raise SystemExit("the process beside it has ended: nothing was measured")
    process.kill()
    process.join()


def count_until(stop: Event | threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def pygame_wait(hz: float):
    import pygame

    clock = pygame.time.Clock()
    return lambda: clock.tick(hz)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--busy-seconds", type=float, default=30)
    options.add_argument("--plot", help="a .png of all errors")
    given = options.parse_args()
    session = Session(World.open("mock"))
    rows: list[tuple[str, np.ndarray]] = []
    print(
        "| clock | rate | beside it | p50 ms | p99 ms | p99.9 ms | drift ms | off by over 1 ms |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for hz, beside, seconds in [
        (60, nothing, given.seconds), (25, nothing, given.seconds),
        *((60, busy, given.busy_seconds) for busy in (
            a_world_in_a_thread, plain_Python_in_a_thread, plain_Python_in_a_process,
        )),
    ]:  # fmt: skip
        for name in ("worldloop", "pygame"):
            wait = Clock(hz).wait if name == "worldloop" else pygame_wait(hz)
            with beside() as ask:
                errors, drift = measure(wait, hz, seconds, lambda ask=ask: (session.tick(), ask()))
            what = beside.__name__.replace("_", " ")
            p50, p99, p999 = np.percentile(errors, [50, 99, 99.9])
            late = 100 * float((errors > 1).mean())
            print(
                f"| {name} | {hz} Hz | {what} | {p50:.3f} | {p99:.2f} | {p999:.2f} | {drift:+.2f} | {late:.1f} % |",
                flush=True,
            )
            rows.append((f"{name}, {hz} Hz, {what}", errors))
    if given.plot:
        plot(rows, given.plot)


def plot(rows: list[tuple[str, np.ndarray]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name, errors in rows:
        ours = name.startswith("worldloop")
        axes.plot(
            np.sort(errors) + 1e-4, 100 * (1 - np.arange(len(errors)) / len(errors)), "-" if ours else "--", label=name
        )
    axes.set(xscale="log", yscale="log", xlabel="error of a tick (ms)", ylabel="ticks with a larger error (%)")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

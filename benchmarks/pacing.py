"""How evenly ticks come: our clock beside pygame's, alone and while a world ticks in the same program.

    python benchmarks/pacing.py --seconds 60 --plot docs/pacing.png

Error: how far a tick came from where an absolute schedule puts it after the one before (ms). Drift: how far the last
tick is from first + n periods. `busy`: a thread beside it that computes without Python's lock (as networks do), or in
plain Python.
"""

from __future__ import annotations

import argparse
import threading
import time

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


def networks(stop: threading.Event) -> None:
    """Matrix products in numpy, which lets go of the lock."""
    a = np.ones((300, 300), np.float32)
    while not stop.is_set():
        a @ a


def plain_python(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def pygame_wait(hz: float):
    import pygame

    clock = pygame.time.Clock()
    return lambda: clock.tick(hz)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--busy-seconds", type=float, default=15)
    options.add_argument("--plot", help="a .png of all errors")
    given = options.parse_args()
    session = Session(World.open("mock"))
    rows: list[tuple[str, np.ndarray]] = []
    print(
        "| clock | rate | beside | p50 ms | p99 ms | p99.9 ms | drift ms | late by over 1 ms |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for hz, busy, seconds in [
        (60, None, given.seconds), (25, None, given.seconds),
        (60, networks, given.busy_seconds), (60, plain_python, given.busy_seconds),
    ]:  # fmt: skip
        for name in ("worldloop", "pygame"):
            clock = Clock(hz)
            wait = clock.wait if name == "worldloop" else pygame_wait(hz)
            stop = threading.Event()
            if busy:
                threading.Thread(target=busy, args=(stop,), daemon=True).start()
            errors, drift = measure(wait, hz, seconds, session.tick)
            stop.set()
            beside = busy.__name__.replace("_", " ") if busy else "nothing"
            p50, p99, p999 = np.percentile(errors, [50, 99, 99.9])
            late = 100 * float((errors > 1).mean())
            print(
                f"| {name} | {hz} Hz | {beside} | {p50:.3f} | {p99:.2f} | {p999:.2f} | {drift:+.2f} | {late:.1f} % |",
                flush=True,
            )
            rows.append((f"{name}, {hz} Hz, {beside}", errors))
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

"""From a key to the first frame that shows it: taps at random phases of a tick, on the real clock.

    python benchmarks/response.py WORLD --taps 100

The world is forked at every tap: one future with the key, one without; the response ends with the first frame of the
one that differs from the other. Measured from the input event to the finished frame, in ms and in ticks.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.governor import Governor, Pipe, Wishes
from runtime.session import Session
from runtime.world import World

MOST_TICKS = 40  # a key that shows nothing by then is counted as that long


def responses(
    world: World, answer: str, taps: int, backend: str, rng: random.Random
) -> tuple[list[float], list[float]]:
    """Milliseconds of each tap, and of each tick."""
    session, shadow = (Session(world, backend=backend) for _ in range(2))
    action = world.manifest.actions[0].name
    clock, governor = Clock(world.manifest.tick_hz), Governor(session.graphs, Wishes(answer))
    governor.rehearse(session, clock.now)
    found, ticks = [], []
    for _ in range(taps):
        controls = Controls(world.manifest.actions)
        pipe = Pipe(session.in_flight if answer == "off" else 0)
        key = controls.keys[action][0]
        for _ in range(rng.randint(3, 10)):
            session.tick({"gas"} & set(world.manifest.action_names))
        shadow.restore(session.snapshot())
        held = session.last_action
        clock.restart()
        clock.wait(governor.lead(clock.period))
        pressed_at = clock.now() + rng.random() * clock.period
        down = False
        for number in range(MOST_TICKS):
            clock.wait(governor.lead(clock.period))
            while not down and clock.now() >= pressed_at:
                controls.press(key, pressed_at)
                down = True
            actions = pipe(held | controls.read().actions)
            begun = clock.now()
            graph = governor.choose(clock.due - begun, actions != session.last_action)
            frame = session.tick(actions, graph=graph)
            done = clock.now()
            governor.measured(graph, done - begun)
            ticks.append(1000 * (done - begun))
            if not np.array_equal(frame, shadow.tick(held, graph="tick")) or number == MOST_TICKS - 1:
                found.append(1000 * (done - pressed_at))
                break
    return found, ticks


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("world", nargs="?", default="mock")
    options.add_argument("--taps", type=int, default=100)
    options.add_argument("--backend", default="auto")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    world = World.open(given.world)
    period = 1000 / world.manifest.tick_hz
    print(
        "| answer | p50 ms | p95 ms | p99 ms | p50 ticks | p99 ticks | a tick costs, p50 ms |\n"
        "|---|---|---|---|---|---|---|"
    )
    for answer in ("off", "late", "rollback"):
        found, ticks = responses(world, answer, given.taps, given.backend, random.Random(given.seed))
        p50, p95, p99 = np.percentile(found, [50, 95, 99])
        cost = float(np.percentile(ticks, 50))
        print(
            f"| {answer} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {p50 / period:.2f} | {p99 / period:.2f} | {cost:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    begun = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - begun:.0f} s")

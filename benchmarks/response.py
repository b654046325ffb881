"""From a key to the first frame that shows it: taps at random phases of a tick, on the real clock.

    python benchmarks/response.py WORLD --taps 100

The world is forked at every tap: one future with the key, one without, both made by the same graphs; the response ends
with the first frame of the one that differs from the other. Measured from the input event to the finished frame, in ms
and in ticks. How far that frame differs says more than that it does: frames in flight that hear of a key late show
only a trace of it.
"""

from __future__ import annotations

import argparse
import random

import numpy as np

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.governor import Governor, Pipe, Wishes
from runtime.session import Session
from runtime.world import World

MOST_TICKS = 40  # a key that shows nothing by then is counted as that long


def responses(
    world: World, answer: str, taps: int, backend: str, rng: random.Random
) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of each tap, and of each tick; mean grey levels by which each tap's first frame differs."""
    session, shadow = (Session(world, backend=backend) for _ in range(2))
    action = world.manifest.actions[0].name
    clock, governor = Clock(world.manifest.tick_hz), Governor(session.graphs, Wishes(answer))
    governor.rehearse(session, clock.now)
    found, ticks, levels = [], [], []
    for _ in range(taps):
        controls = Controls(world.manifest.actions)
        pipe = Pipe(session.in_flight if answer == "off" else 0)
        key = controls.keys[action][0]
        for _ in range(rng.randint(3, 10)):
            session.tick({"gas"} & set(world.manifest.action_names))
        shadow.restore(session.snapshot())
        held = session.last_action
        for _ in range(session.in_flight):
            pipe(held)
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
            other = shadow.tick(held, graph=graph)
            if not np.array_equal(frame, other) or number == MOST_TICKS - 1:
                found.append(1000 * (done - pressed_at))
                levels.append(float(np.abs(frame.astype(int) - other).mean()))
                break
    return found, ticks, levels


def corrections_leave_no_trace(world: World, backend: str, rng: random.Random, times: int = 50) -> bool:
    """Whether a game whose guesses are corrected has, bit for bit, the state of one that knew the keys beforehand."""
    guessed, knew = (Session(world, backend=backend) for _ in range(2))
    for _ in range(times):
        guess, pressed = ({name for name in world.manifest.action_names if rng.random() < 0.3} for _ in range(2))
        guessed.tick(guess)
        frames = guessed.correct(pressed), knew.tick(pressed)
        if not np.array_equal(*frames) or guessed.snapshot() != knew.snapshot():
            return False
    return True


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
        "| answer | p50 ms | p95 ms | p99 ms | p50 ticks | p99 ticks | grey levels, p50 | a tick costs, p50, p99 ms |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for answer in ("off", "late", "rollback"):
        found, ticks, levels = responses(world, answer, given.taps, given.backend, random.Random(given.seed))
        p50, p95, p99 = np.percentile(found, [50, 95, 99])
        cost, dearest = np.percentile(ticks, [50, 99])
        print(
            f"| {answer} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {p50 / period:.2f} | {p99 / period:.2f} "
            f"| {np.percentile(levels, 50):.2f} | {cost:.2f}, {dearest:.2f} |",
            flush=True,
        )
    same = corrections_leave_no_trace(world, given.backend, random.Random(given.seed))
    print(f"\n50 guesses, corrected: {'the same states' if same else 'OTHER STATES'} as those of a game that knew")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()

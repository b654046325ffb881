"""What remembering a minute costs, by three ways: every state, deltas of states, keyframes and ticks.

    python benchmarks/rewind.py WORLD

Prints MB for 60 s and ms on the way (per tick played) and back (to be able to play on from a random tick).
"""

from __future__ import annotations

import argparse
import random
import time
import zlib

import numpy as np

from runtime.session import Session, state_bytes
from runtime.timeline import REWIND_SECONDS
from runtime.world import World

SAMPLES = 40


def flat(session: Session) -> np.ndarray:
    return np.concatenate([np.asarray(array).reshape(-1).view(np.uint8) for array in session.peek().values()])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("world", nargs="?", default="mock")
    options.add_argument("--backend", default="auto")
    options.add_argument("--budget", type=float, default=256)
    given = options.parse_args()
    world = World.open(given.world)
    session = Session(world, backend=given.backend)
    names, rng = world.manifest.action_names, random.Random(0)
    ticks = round(REWIND_SECONDS * world.manifest.tick_hz)

    def tick(played: Session) -> None:
        played.tick({name for name in names if rng.random() < 0.4})

    deflated, deltas, deflating, before, costs = [], [], [], flat(session).copy(), []
    for _ in range(SAMPLES):
        begun = time.perf_counter()
        tick(session)
        costs.append(time.perf_counter() - begun)
        now = flat(session).copy()
        begun = time.perf_counter()
        deltas.append(len(zlib.compress(now ^ before, 1)))
        deflating.append(time.perf_counter() - begun)
        deflated.append(len(zlib.compress(now, 1)))
        before = now
    mb, size = 1 << 20, state_bytes(world)
    print(f"{world.manifest.name}: a state is {size / mb:.3f} MB, a tick {1000 * np.median(costs):.2f} ms")
    print("| way | MB for 60 s | ms per tick | ms to land |\n|---|---|---|---|")
    print(f"| every state | {ticks * size / mb:.1f} | 0 | 0 |")
    print(f"| every state, deflated | {ticks * np.mean(deflated) / mb:.1f} | {1000 * np.median(deflating):.2f} | - |")
    print(f"| differences, deflated | {ticks * np.mean(deltas) / mb:.1f} | {1000 * np.median(deflating):.2f} | - |")
    remembering = Session(world, backend=given.backend, rewind_mb=given.budget)
    plain, kept = [], []
    for _ in range(ticks):
        begun = time.perf_counter()
        tick(remembering)
        kept.append(time.perf_counter() - begun)
    for _ in range(min(ticks, 300)):
        begun = time.perf_counter()
        tick(session)
        plain.append(time.perf_counter() - begun)
    timeline, landings = remembering.timeline, []
    assert timeline is not None
    for _ in range(30):
        remembering.seek(rng.randint(timeline.first, timeline.last))
        begun = time.perf_counter()
        remembering.peek()
        landings.append(time.perf_counter() - begun)
    more, used = 1000 * (np.median(kept) - np.median(plain)), timeline.used / mb
    back = (timeline.last - timeline.first + 1) / world.manifest.tick_hz
    print(
        f"| keyframes every {timeline.interval} ticks, pictures, ticks again | {used:.1f} (reaches back {back:.0f} s) "
        f"| {more:.2f} | {1000 * np.median(landings):.1f}, at most {1000 * max(landings):.1f} |"
    )


if __name__ == "__main__":
    main()

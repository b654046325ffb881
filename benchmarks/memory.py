"""Whether memory stays flat: the process's size during a long game, after 1 % of it and at the end.

python benchmarks/memory.py mock --ticks 100000
"""

from __future__ import annotations

import argparse
import gc
import random
from pathlib import Path

from runtime.session import Session
from runtime.world import World


def resident_mb() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / (1 << 20)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("world", nargs="?", default="mock")
    options.add_argument("--ticks", type=int, default=100_000)
    options.add_argument("--rewind-mb", type=float, default=0, help="remember the past too; it fills its memory first")
    options.add_argument("--backend", default="auto")
    given = options.parse_args()
    session = Session(World.open(given.world), backend=given.backend, rewind_mb=given.rewind_mb)
    names, rng, early = session.world.manifest.action_names, random.Random(0), 0.0
    for tick in range(given.ticks):
        session.tick({name for name in names if rng.random() < 0.4})
        if tick + 1 == max(1, given.ticks // 100):
            gc.collect()
            early = resident_mb()
    gc.collect()
    late = resident_mb()
    growth = 100 * (late / early - 1)
    print(f"{given.world}: {early:.1f} MB after 1 %, {late:.1f} MB after {given.ticks} ticks: {growth:+.2f} %")
    raise SystemExit(abs(growth) > 2 and not given.rewind_mb)


if __name__ == "__main__":
    main()

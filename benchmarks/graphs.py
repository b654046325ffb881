"""What each graph of some worlds costs, taken in turns: the steady tick, frames in flight made anew, fewer steps.

    python benchmarks/graphs.py racer rolling.world

The quickest of all ticks says what a graph takes when nothing else wants the cores.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from runtime.session import Session
from runtime.world import World

AT_ONCE = 10  # ticks of one graph before the next has its turn


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("worlds", nargs="*", default=["racer"])
    options.add_argument("--ticks", type=int, default=300)
    options.add_argument("--backend", default="auto")
    given = options.parse_args()
    sessions = {name: Session(World.open(name), backend=given.backend) for name in given.worlds}
    seconds: dict[tuple[str, str], list[float]] = {
        (name, graph): [] for name, session in sessions.items() for graph in session.graphs
    }
    for _ in range(-(-given.ticks // AT_ONCE)):
        for (name, graph), measured in seconds.items():
            sessions[name].rehearse(graph)
            for _ in range(AT_ONCE):
                begun = time.perf_counter()
                sessions[name].rehearse(graph)
                measured.append(time.perf_counter() - begun)
    print("| world | graph | quickest ms | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for (name, graph), measured in seconds.items():
        quickest, p50, p99 = np.percentile(np.array(measured) * 1000, [0, 50, 99])
        print(f"| {name} | {graph} | {quickest:.2f} | {p50:.2f} | {p99:.2f} |")


if __name__ == "__main__":
    main()

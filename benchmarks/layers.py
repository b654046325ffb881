"""Where a tick's time goes on OpenVINO, by kind of layer: of one player on all threads, and of a batch.

    python benchmarks/layers.py racer --players 8

Milliseconds for all the players: of one, as often as there are players; of a batch, what its threads take on average.
OpenVINO measures each layer while it plays; that alone makes a tick a little slower.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from contextlib import redirect_stderr

import numpy as np
import openvino as ov

from runtime.backends import most_threads
from runtime.backends.graphs import load_graphs
from runtime.backends.openvino import OpenVinoEngine, OpenVinoMaker
from runtime.cli.bench import WARM_UP, Game
from runtime.world import World

KINDS = {"FullyConnected": "products", "Convolution": "convolutions", "Subgraph": "attention, and what is fused"}
REST = "everything else"  # orders and types changed, joined, cut, norms
TURN = 10  # ticks before the other has its turn


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("world", nargs="?", default="racer")
    options.add_argument("--players", type=int, default=8)
    options.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    options.add_argument("--threads", type=int, default=most_threads())
    options.add_argument("--ticks", type=int, default=200)
    given = options.parse_args()
    world = World.open(given.world)
    games = {players: game(world, players, given.precision, given.threads) for players in (1, given.players)}
    seconds: dict[int, list[dict[str, float]]] = {players: [] for players in games}
    for _ in range(-(-given.ticks // TURN)):
        for players, played in games.items():
            seconds[players] += [layers(played, given.threads) for _ in range(TURN)]
    print(f"| ms for {given.players} players | one by one | in one batch |\n|---|---|---|")
    for kind in [*KINDS.values(), REST]:
        alone, together = (float(np.median([tick[kind] for tick in ticks])) * 1000 for ticks in seconds.values())
        print(f"| {kind} | {alone * given.players:.1f} | {together:.1f} |")


def game(world: World, players: int, precision: str, threads: int) -> Game:
    core = ov.Core()
    core.set_property("CPU", {"PERF_COUNT": True})
    played = Game(world, load_graphs(world, OpenVinoMaker(core, threads, precision), players), seed=0)
    play(played, WARM_UP)
    return played


def layers(played: Game, threads: int) -> dict[str, float]:
    """Seconds of one tick by kind of layer."""
    play(played, 1)
    engine = played.backend.engines["tick"]  # type: ignore[attr-defined]
    assert isinstance(engine, OpenVinoEngine)
    of_groups = [by_kind(request.get_profiling_info()) for request, _ in engine.parts]
    at_once = min(len(of_groups), threads)
    return {kind: sum(group[kind] for group in of_groups) / at_once for kind in [*KINDS.values(), REST]}


def by_kind(profile: Iterable[ov.ProfilingInfo]) -> dict[str, float]:
    found = dict.fromkeys([*KINDS.values(), REST], 0.0)
    for layer in profile:
        found[KINDS.get(layer.node_type, REST)] += layer.real_time.total_seconds()
    return found


def play(played: Game, ticks: int) -> None:
    with redirect_stderr(io.StringIO()):  # without its progress bar
        played.play(ticks, "")


if __name__ == "__main__":
    main()

"""Does a long game cost more? Time and memory of a tick at tick 50 and at tick 5,000, for every cache.

    python benchmarks/constant_cost.py [--json]

A small transformer with random weights, one denoising step and one clean pass a tick. Time is processor time, the
median over windows of ticks that are measured for all caches in turn; memory is what the state holds, and how far the
process grew.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from worldmodel.cache.base import Cache, State
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.families.wan_transformer import WanSpec, WanTransformer
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable
from worldmodel.schedule.sampler import Stream

CACHES: dict[str, Cache] = {
    "window": SinkWindow(window=8),
    "sink_window": SinkWindow(window=8, sink=2),
    "relative_sink": RelativeSinkWindow(window=8, sink=2),
    "ema_sink": EmaSink(window=8, sink=2),
    "rolling_sink": RollingSink(window=8, sink=1, attention=6),
}
SIZE = (4, 4)
EARLY, LATE = 50, 5000
MEASURED = 300  # turns of each player, five ticks long


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = [measure(name, cache) for name, cache in CACHES.items()]
    print(json.dumps({"results": results}) if arguments.json else table(results))


def measure(name: str, cache: Cache) -> dict[str, Any]:
    """Two players of one world, one at tick 50 and one at 5,000, take turns, so that both meet the same machine."""
    spec = WanSpec(dim=32, ffn_dim=64, heads=2, layers=1, freq_dim=16, in_channels=4, out_channels=4, text_dim=8)
    stream = Stream(WanTransformer(spec).eval(), cache, FewStep(FlowTable().warp((1000,))), SIZE, in_place=True)
    noise = torch.randn(1, LATE, 4, *SIZE)
    played(stream, noise, 10 * EARLY)  # so that nothing of what the libraries set up counts
    early = played(stream, noise, EARLY)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    late = played(stream, noise, LATE)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
    times: dict[str, list[float]] = {"early": [], "late": []}
    for _ in range(MEASURED):
        for player, state in (("early", early), ("late", late)):
            began = time.process_time()
            for _ in range(5):
                stream.tick(state, noise[:, :1])
            times[player].append((time.process_time() - began) / 5)
        # The same tick again and again: in place, a state's arrays are written, its counters are not moved on.
    return {
        "cache": name,
        "ms_at_50": round(1000 * statistics.median(times["early"]), 3),
        "ms_at_5000": round(1000 * statistics.median(times["late"]), 3),
        "time_ratio": round(statistics.median(times["late"]) / statistics.median(times["early"]), 3),
        "state_kb_at_50": size(early),
        "state_kb_at_5000": size(late),
        "process_grew_kb": grown,
    }


def played(stream: Stream, noise: torch.Tensor, ticks: int) -> State:
    state = stream.prompted(stream.empty(), torch.ones(1, 4, 8))
    for tick in range(ticks):
        _, state = stream.tick(state, noise[:, tick : tick + 1])
    return state


def size(state: State) -> float:
    return round(sum(part.numel() * part.element_size() for part in state.values()) / 1024, 1)


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| cache | ms at tick 50 | ms at tick 5,000 | ratio | state KB at 50 | state KB at 5,000 | process grew, KB |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + ["| " + " | ".join(map(str, one.values())) + " |" for one in results])


if __name__ == "__main__":
    main()

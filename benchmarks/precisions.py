"""Are a world's figures the same in another precision? `worldloop eval` in each, side by side, with the difference.

    python benchmarks/precisions.py [WORLD] [--ticks 2000] [--rollouts 16] [--tolerance 0.02] [--json]

Both play the same tracks with the same noise: the default backend as it ships, and in float32. A free future is chaos,
so figures of few or short drives differ by more than a precision costs. Exit code 1: some figure differs by more than
the tolerance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLI = "from runtime.cli import main; main()"
SMALL = 0.01  # a figure's difference is taken relative to it at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default="racer")
    parser.add_argument("--ticks", default="2000")
    parser.add_argument("--rollouts", default="16")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    words = [arguments.world, "--ticks", arguments.ticks, "--rollouts", arguments.rollouts]
    words += ["--backend", arguments.backend]
    exact, shipped = (figures(evaluated([*words, "--precision", one])) for one in ("fp32", "auto"))
    rows = compared(exact, shipped)
    report = {"tolerance": arguments.tolerance, "rows": rows}
    print(json.dumps(report) if arguments.json else table(rows, arguments.tolerance))
    sys.exit(any(row["difference"] > arguments.tolerance for row in rows))


def evaluated(words: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", CLI, "eval", *words, "--json"], cwd=ROOT, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def figures(report: dict[str, Any], name: str = "") -> dict[str, float]:
    """Every single number of a report, by the way to it; lists (curves, intervals) are left out."""
    found: dict[str, float] = {}
    for key, value in report.items():
        if isinstance(value, dict):
            found |= figures(value, f"{name}{key} ")
        elif isinstance(value, (int, float)):  # truth, too: collapsed or not
            found[name + key] = float(value)
    return found


def compared(exact: dict[str, float], other: dict[str, float]) -> list[dict[str, Any]]:
    """The figures of both, the most different first."""
    rows = [
        {"figure": name, "fp32": value, "shipped": other[name], "difference": apart(value, other[name])}
        for name, value in exact.items()
        if name in other
    ]
    return sorted(rows, key=lambda row: -row["difference"])


def apart(exact: float, other: float) -> float:
    """Relative to the exact figure."""
    return abs(other - exact) / max(abs(exact), SMALL)


def table(rows: list[dict[str, Any]], tolerance: float) -> str:
    lines = ["| figure | float32 | as shipped | difference |", "|---|---|---|---|"]
    lines += [
        f"| {row['figure']} | {row['fp32']:.4g} | {row['shipped']:.4g} | {row['difference']:.1%} |" for row in rows
    ]
    far = sum(row["difference"] > tolerance for row in rows)
    return "\n".join([*lines, "", f"{len(rows) - far} of {len(rows)} figures within {tolerance:.0%}"])


if __name__ == "__main__":
    main()

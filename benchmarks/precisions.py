"""Are a world's figures the same in another precision? `worldloop eval` in each, side by side, with the difference.

    python benchmarks/precisions.py [WORLD] [--ticks 2000] [--rollouts 16] [--tolerance 0.02] [--json]

Both play the same tracks with the same noise: the default backend as it ships, and in float32. A free future is chaos,
so figures of few or short drives differ by more than a precision costs; beside them stands where 95 % of other draws of
float32's drives put the figure. Exit code 1: some figure differs by more than the tolerance, and lies outside of that.
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
    exact, shipped = (evaluated([*words, "--precision", one]) for one in ("fp32", "auto"))
    rows = compared(figures(exact), figures(shipped), intervals(exact))
    report = {"tolerance": arguments.tolerance, "rows": rows}
    print(json.dumps(report) if arguments.json else table(rows, arguments.tolerance))
    sys.exit(any(row["difference"] > arguments.tolerance and not row["chance"] for row in rows))


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
            found |= figures(value, f"{name}{key} ") if key != "settings" else {}
        elif isinstance(value, (int, float)):  # truth, too: collapsed or not
            found[name + key] = float(value)
    return found


def intervals(report: dict[str, Any]) -> dict[str, list[float]]:
    """[low, high] of the figures that have such, by the way to them."""
    return {
        f"scenes {name} {figure}": ends
        for name, scene in report["scenes"].items()
        for figure, ends in scene.get("intervals", {}).items()
        if ends is not None
    }


def compared(
    exact: dict[str, float], other: dict[str, float], sure: dict[str, list[float]] | None = None
) -> list[dict[str, Any]]:
    """The figures of both, the most different first. sure: float32's intervals; chance: the other lies inside."""
    rows = []
    for name in exact.keys() & other.keys():
        ends = (sure or {}).get(name)
        rows.append({
            "figure": name,
            "fp32": exact[name],
            "shipped": other[name],
            "difference": apart(exact[name], other[name]),
            "interval": ends,
            "chance": ends is not None and ends[0] <= other[name] <= ends[1],
        })  # fmt: skip
    return sorted(rows, key=lambda row: (-row["difference"], row["figure"]))


def apart(exact: float, other: float) -> float:
    """Relative to the exact figure."""
    return abs(other - exact) / max(abs(exact), SMALL)


def table(rows: list[dict[str, Any]], tolerance: float) -> str:
    lines = ["| figure | float32 | 95 % of float32 | as shipped | difference |", "|---|---|---|---|---|"]
    for row in rows:
        ends = " to ".join(f"{end:.4g}" for end in row["interval"] or ())
        lines.append(
            f"| {row['figure']} | {row['fp32']:.4g} | {ends} | {row['shipped']:.4g} | {row['difference']:.1%} |"
        )
    far = [row for row in rows if row["difference"] > tolerance]
    by_chance = sum(row["chance"] for row in far)
    lines += ["", f"{len(rows) - len(far)} of {len(rows)} figures within {tolerance:.0%}"]
    return "\n".join(lines) + (f", {by_chance} of the others within what chance does to float32" if far else "")


if __name__ == "__main__":
    main()

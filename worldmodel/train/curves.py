"""Draw the curves of a run folder: `python -m worldmodel.train.curves RUN OUT.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

SMOOTH = 9  # logged values that a median is taken over


def draw(run: Path, out: Path) -> None:
    """Every figure that the stages of a run logged, over hours of training."""
    histories = {path.stem: json.loads(path.read_text()) for path in sorted(run.glob("*.json")) if path.stem != "spec"}
    shown = [(stage, name) for stage, history in histories.items() for name in _names(history)]
    figure = Figure(figsize=(4 * min(3, len(shown)), 2.6 * -(-len(shown) // 3)), layout="constrained")
    for i, (stage, name) in enumerate(shown):
        axes = figure.add_subplot(-(-len(shown) // 3), min(3, len(shown)), i + 1)
        points = [(entry["seconds"] / 3600, entry[name]) for entry in histories[stage] if name in entry]
        hours, values = np.array(points).T
        axes.plot(hours, _median(values), linewidth=1.2)
        axes.set_title(f"{stage}: {name}", fontsize=9)
        axes.set_xlabel("hours", fontsize=8)
        if "psnr" not in name and values.min() > 0:
            axes.set_yscale("log")
    figure.savefig(out, dpi=110)


def _names(history: list[dict[str, float]]) -> list[str]:
    names = dict.fromkeys(name for entry in history for name in entry)
    return [name for name in names if name not in ("step", "seconds")]


def _median(values: np.ndarray) -> np.ndarray:
    """A running median: single steps differ in kind (tiles, own roll-outs), which is not what a curve shall show."""
    if len(values) < 3 * SMOOTH:
        return values
    padded = np.pad(values, SMOOTH // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m worldmodel.train.curves RUN OUT.png")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))

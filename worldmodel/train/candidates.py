"""Every candidate world in one table: `python -m worldmodel.train.candidates DIR OUT.md`.

DIR holds one report.json of `worldloop eval` per world, named after it. Each scene of a world is a column.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldmodel.errors import DatasetError

ROWS = (  # figure, and what the real game scores on it: a number, or the name of the figure that says so
    ("psnr_next", "psnr_codec"), ("psnr_copy", None), ("ssim_next", "ssim_codec"),
    ("perceptual_next", "perceptual_codec"), ("perceptual_copy", None), ("follow", "follow_ceiling"),
    ("keys_share", 1.0), ("keys_over_chance", 1.0), ("flow_ratio", 1.0), ("motion_ratio", 1.0), ("shake", 1.0),
    ("turn_sign", "turn_sign_real"), ("turn_speed", 1.0), ("response_ticks", 0.0), ("coasts", "coasts_real"),
    ("stands", "stands_real"), ("on_road", "on_road_real"), ("finds_road", "finds_road_real"),
    ("strays", "strays_real"), ("speed_ratio", 1.0), ("bends_ratio", 1.0), ("stall", "stall_real"),
    ("drift_ratio", "drift_ratio_real"), ("frechet_ratio", "frechet_ratio_real"), ("frechet_end", "frechet_end_real"),
    ("frechet_kept", "frechet_kept_real"), ("collapsed", "collapsed_real"), ("memory", "memory_real"),
    ("diversity", 1.0),
)  # fmt: skip
PROMPT_ROWS = ("recognised", "ticks")


def table(found: dict[str, dict[str, Any]]) -> str:
    """Reports by name as Markdown: a row for each figure, a column for each world, its interval in small print."""
    columns = [
        (name if len(report["scenes"]) == 1 else f"{name}, {scene}", report, figures)
        for name, report in found.items()
        for scene, figures in report["scenes"].items()
    ]
    lines = [
        line(["figure", *(name for name, *_ in columns), "real game"]),
        line(["---"] * (len(columns) + 2)),
        line(["players, ticks", *(_size(report) for _, report, _ in columns), ""]),
    ]
    for figure, real in ROWS:
        cells = [cell(figures, figure) for *_, figures in columns]
        best = [_real(figures, real) for *_, figures in columns]
        if any(cells):
            lines.append(line([f"`{figure}`", *cells, next((text for text in best if text), "")]))
    for figure in PROMPT_ROWS:
        cells = [cell(report.get("prompt", {}), figure) for _, report, _ in columns]
        if any(cells):
            lines.append(line([f"`prompt.{figure}`", *cells, ""]))
    return "\n".join(lines) + "\n"


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _size(report: dict[str, Any]) -> str:
    return f"{report['settings']['rollouts']}, {report['settings']['ticks']}"


def _real(figures: dict[str, Any], real: float | str | None) -> str:
    return cell(figures, real) if isinstance(real, str) else "" if real is None else f"{real:g}"


def cell(figures: dict[str, Any], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return ""
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    interval = figures.get("intervals", {}).get(name)
    return f"{text} <sub>{interval[0]:.2f}–{interval[1]:.2f}</sub>" if interval else text


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """All reports in a folder, by name."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise DatasetError(f"{folder}: no reports here; copy report.json of 'worldloop eval --report' to WORLD.json")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m worldmodel.train.candidates DIR OUT.md")
    Path(sys.argv[2]).write_text(f"# Every candidate world\n\n{table(read(Path(sys.argv[1])))}")

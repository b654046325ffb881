"""An evaluation as a page: figures in a table, strips of pictures under it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldmodel.train.pictures import save_strip


@dataclass(frozen=True)
class Picture:
    """Rows of equally sized frames under one file name."""

    file: str
    text: str
    rows: Sequence[Sequence[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Curve:
    """Figures over ticks, one line each, under one file name."""

    file: str
    text: str
    unit: str
    ticks: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]
    bands: Mapping[str, Sequence[tuple[float, float] | None]]  # around some lines

    def draw(self, folder: Path) -> None:
        """Write the plot."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for name, values in self.lines.items():
            (line,) = axes.plot(self.ticks, [np.nan if v is None else v for v in values], marker="o", label=name)
            if name in self.bands and all(band is not None for band in self.bands[name]):
                low, high = np.array(self.bands[name], float).T
                axes.fill_between(self.ticks, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel="tick", ylabel=self.unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(folder / self.file, dpi=110)


def write_report(
    folder: Path, found: dict[str, Any], pictures: Sequence[Picture], curves: Sequence[Curve] = ()
) -> None:
    """Write index.html and the pictures and plots that it shows."""
    parts = [_HEAD, "<h1>Evaluation</h1>"]
    for name, figures in [*found["scenes"].items(), ("prompt", found.get("prompt", {}))]:
        if figures:
            parts += [f"<h2>{html.escape(name)}</h2>", _table(figures)]
    for curve in curves:
        curve.draw(folder)
        parts.append(f'<p>{html.escape(curve.text)}</p><img class="plot" src="{html.escape(curve.file)}">')
    for picture in pictures:
        save_strip(folder / picture.file, picture.rows)
        parts.append(f'<p>{html.escape(picture.text)}</p><img src="{html.escape(picture.file)}">')
    (folder / "index.html").write_text("\n".join(parts) + "\n")


def _table(figures: dict[str, Any]) -> str:
    intervals = figures.get("intervals", {})
    rows = "".join(
        f"<tr><th>{html.escape(key)}<td>{_cell(value)}{_span(intervals.get(key))}"
        for key, value in figures.items()
        if key != "intervals"
    )
    return f"<table>{rows}</table>"


def _span(interval: Sequence[float] | None) -> str:
    return f" <small>{interval[0]:.3f} to {interval[1]:.3f}</small>" if interval else ""


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return _table(value)
    if isinstance(value, list):
        return "".join(_cell(part) for part in value)
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))


_HEAD = """<!doctype html>
<meta charset="utf-8">
<title>Evaluation</title>
<style>
 body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 70em }
 th { text-align: left; font-weight: normal; padding-right: 1.5em; vertical-align: top }
 img { image-rendering: pixelated; min-width: 50% }
 img.plot { image-rendering: auto }
</style>"""

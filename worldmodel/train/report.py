"""An evaluation as a page: figures in a table, strips of pictures under it."""

from __future__ import annotations

import html
from collections.abc import Sequence
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


def write_report(folder: Path, found: dict[str, Any], pictures: Sequence[Picture]) -> None:
    """Write index.html and the pictures that it shows."""
    parts = [_HEAD, "<h1>Evaluation</h1>"]
    for name, figures in [*found["scenes"].items(), ("prompt", found.get("prompt", {}))]:
        if figures:
            parts += [f"<h2>{html.escape(name)}</h2>", _table(figures)]
    for picture in pictures:
        save_strip(folder / picture.file, picture.rows)
        parts.append(f'<p>{html.escape(picture.text)}</p><img src="{html.escape(picture.file)}">')
    (folder / "index.html").write_text("\n".join(parts) + "\n")


def _table(figures: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{html.escape(key)}<td>{_cell(value)}" for key, value in figures.items())
    return f"<table>{rows}</table>"


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
</style>"""

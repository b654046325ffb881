"""What a benchmark found stays found: begun again, it tries only what is missing or asked for differently."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldmodel.train.dataset import write_json


def once(path: Path, asked: dict[str, Any], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `find` gives, from `path` if it was found for the same `asked` before; both are plain JSON."""
    if path.exists() and (kept := json.loads(path.read_text()))["asked"] == asked:
        figures: dict[str, Any] = kept["figures"]
        return figures
    figures = find()
    write_json(path, {"asked": asked, "figures": figures})
    return figures

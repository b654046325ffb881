"""Engines of world files for NVIDIA GPUs: where they are kept, and how they are built with a bar to watch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from rich.console import Console
from rich.progress import Progress

if TYPE_CHECKING:
    from export.tensorrt import About, Engine


def engines_folder() -> Path:
    return Path(platformdirs.user_cache_dir("worldloop"), "engines")


def engine_of(about: About, graph: Path, folder: Path) -> tuple[Path, Engine | None]:
    """The engine's file; built from the graph of a world file, if it is not there, and then given too."""
    from export.quantize import with_weights
    from export.tensorrt import build, cached

    def make() -> Engine:
        with Progress(console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task(f"{about.graph}, {about.precision}")

            def tell(phase: str, at: int, of: int) -> None:
                bars.update(bar, description=phase, completed=at, total=of)

            return build(with_weights(graph), about, tell, folder / about.timings_name)

    return cached(about, folder, make)

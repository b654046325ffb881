"""Where the text encoder of an imported world lies: gigabytes, shared by many worlds, so that no world file holds it.

A world file notes the way from itself to the folder. So the two can be moved together; alone, the folder is found by
its name beside the world file, or in the folder that WORLDLOOP_ENCODERS names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "WORLDLOOP_ENCODERS"


def noted(folder: Path, world: Path) -> str:
    """What a world file says of the folder."""
    try:
        return Path(os.path.relpath(folder.resolve(), world.resolve().parent)).as_posix()
    except ValueError:  # on another drive there is no way from one to the other
        return folder.resolve().name


def found(noted: str, world: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder, if it is in one of the places above."""
    beside = world.resolve().parent
    places = [beside / noted, beside / Path(noted).name]
    if environment.get(VARIABLE):
        places.append(Path(environment[VARIABLE], Path(noted).name))
    return next((place for place in places if place.is_dir()), None)


def missed(noted: str, world: Path) -> str:
    """What to do about a folder that was not found."""
    name = Path(noted).name
    return (
        f"{world.name}: prompts need its text encoder, the folder {name!r}, which is not where it was: "
        f"put it beside the world file, or set {VARIABLE} to the folder that holds it"
    )

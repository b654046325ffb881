"""Write a world file: one zip, its manifest holding the size and hash of everything else. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content gives the same file


def write_world(path: Path, about: Mapping[str, Any], files: Mapping[str, bytes], level: int = 9) -> str:
    """Write manifest and files; gives the world's hash. about: the manifest without `format` and `files`.

    level: of compression, 1 where a file is read once and thrown away.
    """
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    manifest = json.dumps({"format": FORMAT, **about, "files": listed}, indent=1, sort_keys=True).encode()
    unfinished = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"manifest.json": manifest, **dict(sorted(files.items()))}.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data, zipfile.ZIP_DEFLATED, level)
    os.replace(unfinished, path)
    return hashlib.sha256(manifest).hexdigest()

"""The player's own keys: bindings.toml, one table for each world, action = [keys].

    [racer]
    left = ["a", "pad:left"]
    gas = ["w", "mouse:right"]

An action that is left out keeps the world's keys.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from runtime.bindings import default_bindings
from runtime.errors import BindingsError
from runtime.manifest import PLAYER_KEYS, Manifest

MAX_FILE = 1 << 20  # bytes
MAX_KEYS = 16  # of one action
MAX_KEY_NAME = 40  # characters


def bindings_path() -> Path:
    return platformdirs.user_config_path("worldloop") / "bindings.toml"


def read_bindings(path: Path, manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Every action's keys: the file's where it names them, else the world's. No file: the world's."""
    keys = default_bindings(manifest.actions)
    table = _document(path).get(manifest.name, {})
    if not isinstance(table, dict):
        raise BindingsError(f'{path}: {manifest.name} must be a table: write [{manifest.name}], then action = ["key"]')
    for action, names in table.items():
        if action not in keys:
            known = ", ".join(keys) or "none"
            raise BindingsError(f"{path}: [{manifest.name}] has no action {action[:80]!r}; it has: {known}")
        keys[action] = _keys(names, f"{path}: {manifest.name}.{action}")
    return keys


def write_bindings(path: Path, manifest: Manifest, keys: Mapping[str, tuple[str, ...]]) -> None:
    """Put one world's table into the file; those of other worlds stay."""
    tables = {**_document(path), manifest.name: {action: list(names) for action, names in keys.items()}}
    text = ["# Which keys press which actions. Written by worldloop; edit it as you like.\n"]
    for world, table in tables.items():
        if isinstance(table, dict):
            text.append(f"\n[{_quoted(world)}]\n")
            text += [f"{_quoted(action)} = {_list(names)}\n" for action, names in table.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text("".join(text), encoding="utf-8")
    unfinished.replace(path)


def _list(names: object) -> str:
    texts = [_quoted(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return f"[{', '.join(texts)}]"


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, but for the one control character that JSON lets through."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _document(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE:
            raise BindingsError(f"{path} is larger than {MAX_FILE >> 20} MB, no bindings of ours")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # ValueError: TOML and UTF-8 errors
        raise BindingsError(f"{path} cannot be read ({error}): repair it, or delete it to have the defaults") from error


def _keys(names: object, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) > MAX_KEYS:
        raise BindingsError(f'{where} must be a list of at most {MAX_KEYS} keys, such as ["a", "pad:left"]')
    keys = []
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_KEY_NAME:
            raise BindingsError(f"{where}: {str(name)[:80]!r} is no key's name")
        if name.lower() in PLAYER_KEYS:
            raise BindingsError(f"{where}: the key {name!r} belongs to the player: choose another")
        keys.append(name.lower())
    return tuple(keys)

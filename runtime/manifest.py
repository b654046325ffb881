"""What a world file says about itself: manifest.json, read into checked, frozen dataclasses.

Everything is checked here, before anything is allocated: types, ranges, names, sizes. An error names the field.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import WorldFileError

FORMAT = 1
MAX_STATE_BYTES = 8 << 30  # all state tensors of one player together
MAX_SIDE = 8192  # pixels
TICK_HZ = 0.1, 1000.0  # least and most
MAX_ACTIONS = 64  # so that a tick's actions fit one integer of a replay
MAX_ITEMS = 4096  # prompts, starts, state tensors, files
MAX_FILE_NAME = 200  # characters
MAX_TEXT = 4096  # characters of a prompt or a title

DTYPES = {name: np.dtype(name) for name in ("float32", "float16", "int64", "int32", "uint8", "bool")}
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,4}")  # no "..", no absolute path
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# What the window keeps for itself:
PLAYER_KEYS = frozenset({"tab", "p", ".", "r", "h", "backspace", "escape", *(f"f{n}" for n in range(1, 13))})


@dataclass(frozen=True)
class TensorSpec:
    """Shape (axis 0 = players where it is a state tensor) and type of an array.

    carried: of cached keys and values that stay what they are while they are kept, so that a backend may keep them in
    the precision of its products. Not those of a sink that averages: what a tick adds to it would be rounded away.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    carried: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Action:
    """A button of the world and the keys that press it by default, by their pygame names.

    condition: what it leads, where that is nothing of the game's own (`camera`, `tracks`).
    """

    name: str
    keys: tuple[str, ...]
    condition: str | None = None


@dataclass(frozen=True)
class Graph:
    """A network in the file. `noise`: [passes, channels, rows, columns] if it differs from the world's own."""

    file: str
    noise: tuple[int, ...] | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class Start:
    """A state shipped with the world. Tensors that its file leaves out are zero until the recache graph fills them."""

    name: str
    prompt: str
    file: str


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    name: str
    title: str
    tick_hz: float
    height: int  # pixels
    width: int  # pixels
    preview: bool  # True: shown as unfinished
    licence: str
    credits: str
    trained_on: str
    actions: tuple[Action, ...]
    prompts: tuple[str, ...]  # suggestions
    default_prompt: str
    default_start: str
    state: Mapping[str, TensorSpec]
    noise: tuple[int, ...]  # [passes, channels, rows, columns] of one tick
    prompt: tuple[int, int]  # [tokens, dim] of a prompt embedding
    graphs: Mapping[str, Graph]
    starts: tuple[Start, ...]
    files: Mapping[str, StoredFile]
    environment: str | None = None  # id of the real environment
    adapter: str | None = None  # its module in worldmodel/train/envs
    spec: Mapping[str, Any] | None = None  # how to build it in torch, of native worlds
    flops_per_tick: float | None = None  # floating point operations of the tick graph, one player

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(action.name for action in self.actions)

    @property
    def game_actions(self) -> tuple[str, ...]:
        """Those that the real environment has, too; they come first."""
        return tuple(action.name for action in self.actions if action.condition is None)

    def start(self, name: str | None) -> Start | None:
        """The start of this name, by default the default one. None only in a world without starts."""
        wanted = self.default_start if name is None else name
        for start in self.starts:
            if start.name == wanted:
                return start
        if name is None and not self.starts:
            return None
        known = ", ".join(start.name for start in self.starts) or "none"
        raise WorldFileError(f"world {self.name!r} has no start {wanted!r}; it has: {known}")


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Check manifest.json and read it. `where` names the world file in errors."""
    try:
        document = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise WorldFileError(f"{where}: manifest.json is not valid JSON ({error}): get the world file again") from error
    top = _Fields(document, f"{where}: manifest.json")
    version = top.integer("format", 0, 1 << 31)
    if version != FORMAT:
        cure = "update worldloop" if version > FORMAT else "export the world again"
        raise WorldFileError(f"{where}: world file format {version}, this version reads {FORMAT}: {cure}")

    noise = top.child("noise").shape("shape", 4)
    environment = top.child("environment") if "environment" in top.raw else None
    manifest = Manifest(
        name=top.name("name"),
        title=top.text("title"),
        tick_hz=top.number("tick_hz", *TICK_HZ),
        height=top.integer("height", 1, MAX_SIDE),
        width=top.integer("width", 1, MAX_SIDE),
        preview=top.boolean("preview"),
        licence=top.text("licence"),
        credits=top.text("credits"),
        trained_on=top.text("trained_on"),
        actions=tuple(_action(item) for item in top.children("actions", MAX_ACTIONS)),
        prompts=top.texts("prompts"),
        default_prompt=top.text("default_prompt"),
        default_start=top.text("default_start"),
        state={name: _tensor(item) for name, item in top.named("state")},
        noise=noise,
        prompt=top.child("prompt").shape("shape", 2),  # type: ignore[arg-type]
        graphs={name: _graph(item) for name, item in top.named("graphs")},
        starts=tuple(_start(item) for item in top.children("starts")),
        files={name: _stored(item) for name, item in top.named("files")},
        environment=environment.text("id") if environment else None,
        adapter=environment.name("adapter") if environment and "adapter" in environment.raw else None,
        spec=top.child("spec").raw if "spec" in top.raw else None,
        flops_per_tick=top.number("flops_per_tick", 0.0, 1e18) if "flops_per_tick" in top.raw else None,
    )
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    """What no single field can tell."""
    total = sum(tensor.nbytes for tensor in manifest.state.values())
    if total > MAX_STATE_BYTES:
        raise WorldFileError(f"{where}: its state needs {total >> 20} MB, the limit is {MAX_STATE_BYTES >> 20} MB")
    for name, tensor in manifest.state.items():
        if not tensor.shape or tensor.shape[0] != 1:
            raise WorldFileError(f"{where}: state.{name} must have 1 player on axis 0, got shape {list(tensor.shape)}")
    names = manifest.action_names
    if len(set(names)) != len(names):
        raise WorldFileError(f"{where}: two actions have the same name")
    for action in manifest.actions:
        for key in set(action.keys) & PLAYER_KEYS:
            raise WorldFileError(f"{where}: action {action.name!r} wants the key {key!r}, which belongs to the player")
    if manifest.game_actions != names[: len(manifest.game_actions)]:
        raise WorldFileError(f"{where}: an action that leads a condition comes before one of the game's own")
    starts = [start.name for start in manifest.starts]
    if len(set(starts)) != len(starts):
        raise WorldFileError(f"{where}: two starts have the same name")
    if starts and manifest.default_start not in starts:
        raise WorldFileError(f"{where}: default_start {manifest.default_start!r} is none of {', '.join(starts)}")
    wanted = [graph.file for graph in manifest.graphs.values()]
    wanted += [graph.tokenizer for graph in manifest.graphs.values() if graph.tokenizer]
    wanted += [start.file for start in manifest.starts]
    for file in wanted:
        if file not in manifest.files:
            raise WorldFileError(f"{where}: {file} is used but not listed under files: export the world again")
    for file in manifest.files:
        if not FILE_NAME.fullmatch(file) or len(file) > MAX_FILE_NAME or file == "manifest.json":
            raise WorldFileError(f"{where}: file name {file[:80]!r} is not allowed")


def _action(item: _Fields) -> Action:
    condition = item.name("condition") if "condition" in item.raw else None
    return Action(item.name("name"), tuple(key.lower() for key in item.texts("keys")), condition)


def _tensor(item: _Fields) -> TensorSpec:
    dtype = item.text("dtype")
    if dtype not in DTYPES:
        raise item.wrong("dtype", f"one of {', '.join(DTYPES)}", dtype)
    carried = "carried" in item.raw and item.boolean("carried")
    return TensorSpec(item.shape("shape"), DTYPES[dtype], carried)


def _graph(item: _Fields) -> Graph:
    noise = item.child("noise").shape("shape", 4) if "noise" in item.raw else None
    tokenizer = item.text("tokenizer") if "tokenizer" in item.raw else None
    return Graph(item.text("file"), noise, tokenizer)


def _start(item: _Fields) -> Start:
    return Start(item.name("name"), item.text("prompt"), item.text("file"))


def _stored(item: _Fields) -> StoredFile:
    sha256 = item.text("sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise item.wrong("sha256", "64 hexadecimal digits", sha256)
    return StoredFile(sha256, item.integer("bytes", 0, 1 << 40))


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


class _Fields:
    """A JSON object whose fields are taken out with a type and a range, or refused by name."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise WorldFileError(f"{where} must be an object, got {_short(raw)}")
        self.raw: dict[str, Any] = raw
        self.where = where

    def wrong(self, key: str, wanted: str, found: object) -> WorldFileError:
        return WorldFileError(f"{self.where}: {key} must be {wanted}, got {_short(found)}")

    def get(self, key: str) -> Any:
        if key not in self.raw:
            raise WorldFileError(f"{self.where}: {key} is missing")
        return self.raw[key]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise self.wrong(key, f"a text of at most {MAX_TEXT} characters", value)
        return value

    def name(self, key: str) -> str:
        value = self.text(key)
        if not NAME.fullmatch(value):
            raise self.wrong(key, "a name of letters, digits, '_', '-' and '.'", value)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.items(key)
        if not all(isinstance(value, str) and len(value) <= MAX_TEXT for value in values):
            raise self.wrong(key, "a list of texts", values)
        return tuple(values)

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}", value)
        return value

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def shape(self, key: str, rank: int | None = None) -> tuple[int, ...]:
        values = self.items(key, 8)
        sizes = all(isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= 1 << 31 for v in values)
        if not sizes or (rank is not None and len(values) != rank):
            raise self.wrong(key, f"{rank or 'up to 8'} sizes of at least 1", values)
        if math.prod(values) > MAX_STATE_BYTES:
            raise self.wrong(key, "a shape of sensible size", values)
        return tuple(values)

    def items(self, key: str, most: int = MAX_ITEMS) -> list[Any]:
        values = self.get(key)
        if not isinstance(values, list) or len(values) > most:
            raise self.wrong(key, f"a list of at most {most} items", values)
        return values

    def child(self, key: str) -> _Fields:
        return _Fields(self.get(key), f"{self.where}: {key}")

    def children(self, key: str, most: int = MAX_ITEMS) -> list[_Fields]:
        return [_Fields(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(self.items(key, most))]

    def named(self, key: str) -> list[tuple[str, _Fields]]:
        values = self.get(key)
        if not isinstance(values, dict) or len(values) > MAX_ITEMS:
            raise self.wrong(key, f"an object of at most {MAX_ITEMS} items", values)
        return [(name, _Fields(item, f"{self.where}: {key}.{name}")) for name, item in values.items()]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""A replay: seed, prompts and actions of a game, with checksums of its frames; makes the same frames again.

    8 bytes   b"WLREPL01"
    records   4 bytes length, 4 bytes CRC-32 (both little-endian), then that many bytes of msgpack

The first record is the header (see Header); then, in the order in which they happened:

    ["tick", number, actions, check]   actions: bit i = i-th action of the header; check: None, or on every 16th tick
                                       [CRC-32 of the frame, 8 × 8 × 3 bytes of it averaged down]
    ["tick", number, actions, check, graph]   the same, made with another graph than `tick`: the governor's choice
    ["prompt", text]                   from the next tick on
    ["restart", seed, start, prompt]   the game began again
    ["restore", snapshot]              the game went on from a snapshot

Every record is handed to the system when it is made, so a killed program loses none; a record that was cut off at the
end of the file is cut away when the file is opened.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from runtime.backends import ON_GPU
from runtime.backends.graphs import TICKS
from runtime.cuda import gpu_name
from runtime.errors import ReplayError
from runtime.machine import cpu_name, versions
from runtime.manifest import MAX_ACTIONS, TICK_HZ
from runtime.session import Session

MAGIC = b"WLREPL01"
FORMAT = 1
CHECK_EVERY = 16  # ticks
MAX_RECORD = 1 << 30  # bytes
MAX_FILE = 4 << 30  # bytes
THUMB = 8  # cells per side of a frame averaged down
TOLERANCE = (
    12.0  # of 255, mean difference of two thumbs: another backend rounds differently, and the game drifts apart slowly
)


@dataclass(frozen=True)
class Header:
    """world: name or path it was opened by. device: the CPU's or GPU's name. versions: of packages that make frames."""

    format: int
    world: str
    world_hash: str
    seed: int
    start: str | None
    prompt: str
    backend: str
    precision: str
    threads: int
    device: str
    versions: dict[str, str]
    actions: list[str]
    tick_hz: float


@dataclass(frozen=True)
class Replay:
    """header, the records after it, and how many bytes were cut away from a torn end."""

    header: Header
    records: list[list[Any]]
    repaired_tail_bytes: int

    @property
    def ticks(self) -> int:
        return sum(record[0] == "tick" for record in self.records)


@dataclass(frozen=True)
class Played:
    """One tick of a replay, played again: its index in the replay, the frame, and what the recording says about it."""

    index: int
    frame: np.ndarray
    check: list[Any] | None


class Recorder:
    """Writes a replay while a session is played, from its tick 0 on."""

    def __init__(self, path: Path, session: Session, world: str) -> None:
        assert session.tick_number == 0, "a replay begins with the game"
        self._bits = {name: 1 << i for i, name in enumerate(session.world.manifest.action_names)}
        self._prompt = session.prompt
        self._ticks = 0
        self._file = path.open("wb", buffering=0)
        self._file.write(MAGIC)
        self._write(asdict(describe(session, world)))

    def tick(self, session: Session, frame: np.ndarray) -> None:
        """Note the tick that has just given this frame."""
        if session.prompt != self._prompt:
            self._write(["prompt", session.prompt])
            self._prompt = session.prompt
        mask = sum(self._bits[name] for name in session.last_action)
        self._ticks += 1
        check = None if self._ticks % CHECK_EVERY else [zlib.crc32(frame.tobytes()), thumb(frame)]
        chosen = [] if session.last_graph == "tick" else [session.last_graph]
        self._write(["tick", session.tick_number - 1, mask, check, *chosen])

    def restarted(self, session: Session) -> None:
        self._write(["restart", session.seed, session.start, session.prompt])
        self._prompt = session.prompt

    def restored(self, snapshot: bytes, session: Session) -> None:
        self._write(["restore", snapshot])
        self._prompt = session.prompt

    def close(self) -> None:
        self._file.close()

    def _write(self, record: object) -> None:
        payload = msgpack.packb(record)
        # One write call: a kill leaves the record whole, or cut off where reading can see it.
        self._file.write(len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little") + payload)


def describe(session: Session, world: str) -> Header:
    manifest, backend = session.world.manifest, session.backend
    return Header(
        format=FORMAT,
        world=world if session.world.path is None or "/" not in world else str(session.world.path.resolve()),
        world_hash=session.world.hash,
        seed=session.seed,
        start=session.start,
        prompt=session.prompt,
        backend=backend.name,
        precision=backend.precision,
        threads=backend.threads,
        device=(gpu_name() if backend.name in ON_GPU else None) or cpu_name(),
        versions=versions(),
        actions=list(manifest.action_names),
        tick_hz=manifest.tick_hz,
    )


def open_replay(path: Path) -> Replay:
    """Read a replay; a torn end is cut away from the file."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise ReplayError(f"{path} is larger than {MAX_FILE >> 30} GB, no replay of ours")
        data = path.read_bytes()
    except OSError as error:
        raise ReplayError(f"replay {path} cannot be read ({error.strerror})") from error
    if data[: len(MAGIC)] != MAGIC:
        raise ReplayError(f"{path} is not a replay, or one of another version")
    payloads, end = split_records(data, str(path))
    torn = len(data) - end
    if torn and os.access(path, os.W_OK):
        os.truncate(path, end)
    records = [_unpack(payload, path, number) for number, payload in enumerate(payloads)]
    if not records:
        raise ReplayError(f"{path} holds no header: the recording stopped before it began")
    header = _header(records[0], path)
    return Replay(
        header, [_record(record, len(header.actions), path, n) for n, record in enumerate(records[1:], 1)], torn
    )


def split_records(data: bytes, where: str) -> tuple[list[memoryview], int]:
    """The whole records and where the last one ends. Damage before the last record is an error, not a torn end."""
    view, at = memoryview(data), len(MAGIC)
    payloads: list[memoryview] = []
    while at < len(view):
        begin = at + 8
        size = int.from_bytes(view[at : at + 4], "little")
        if begin > len(view) or (size <= MAX_RECORD and begin + size > len(view)):
            break
        payload = view[begin : begin + size]
        if size > MAX_RECORD or zlib.crc32(payload) != int.from_bytes(view[at + 4 : begin], "little"):
            if begin + size == len(view):
                break
            raise ReplayError(f"{where} is damaged at byte {at} (record {len(payloads)}): use an undamaged copy")
        payloads.append(payload)
        at = begin + size
    return payloads, at


def play_again(replay: Replay, session: Session) -> Iterator[Played]:
    """Execute a replay on a fresh session of its world."""
    check_world(replay, session)
    index = 0
    for record in replay.records:
        frame = execute(record, replay.header.actions, session)
        if frame is not None:
            yield Played(index, frame, record[3])
            index += 1


def check_world(replay: Replay, session: Session) -> None:
    if session.world.hash != replay.header.world_hash:
        raise ReplayError(
            f"the replay was made with another version of world {session.world.manifest.name!r} "
            f"({replay.header.world_hash[:12]}…): give that one with --world"
        )


def execute(record: list[Any], names: list[str], session: Session) -> np.ndarray | None:
    """Do what one record after the header says; names: the header's actions. The frame, if it was a tick."""
    kind, *rest = record
    if kind == "tick":
        pressed = [name for i, name in enumerate(names) if rest[1] >> i & 1]
        return session.tick(pressed, graph=rest[3] if len(rest) > 3 else "tick")
    if kind == "prompt":
        session.set_prompt(rest[0])
    elif kind == "restart":
        session.restart(seed=rest[0], start=rest[1], prompt=rest[2])
    elif kind == "restore":
        session.restore(rest[0])
    return None


def same_machine(header: Header, session: Session) -> bool:
    """Whether the same bytes can be expected: same backend, precision, threads, device and packages."""
    now = describe(session, header.world)
    kept = ("backend", "precision", "threads", "device", "versions")
    return all(getattr(now, name) == getattr(header, name) for name in kept)


def agrees(played: Played, exact: bool) -> bool:
    """Whether the frame is the recorded one: byte for byte, or, on another machine, alike when looked at from afar."""
    if played.check is None:
        return True
    crc, small = played.check
    if exact:
        return zlib.crc32(played.frame.tobytes()) == crc
    ours, theirs = (np.frombuffer(data, np.uint8).astype(float) for data in (thumb(played.frame), small))
    return ours.shape == theirs.shape and float(np.abs(ours - theirs).mean()) <= TOLERANCE


def thumb(frame: np.ndarray) -> bytes:
    """The frame averaged down to THUMB × THUMB cells, uint8."""
    height, width, _ = frame.shape
    rows, columns = max(1, height // THUMB), max(1, width // THUMB)
    sums = np.add.reduceat(frame.astype(np.uint32), np.arange(0, height, rows)[:THUMB], axis=0)
    sums = np.add.reduceat(sums, np.arange(0, width, columns)[:THUMB], axis=1)
    return (sums // (rows * columns)).clip(0, 255).astype(np.uint8).tobytes()


def _unpack(payload: memoryview, path: Path, number: int) -> Any:
    try:
        return msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise ReplayError(f"{path}: record {number} is damaged ({error})") from error


def _header(raw: Any, path: Path) -> Header:
    if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] != FORMAT:
        raise ReplayError(f"{path}: replay format {raw['format']}, this version reads {FORMAT}")
    kinds: dict[str, Any] = {
        "format": int, "world": str, "world_hash": str, "seed": int, "start": (str, type(None)), "prompt": str,
        "backend": str, "precision": str, "threads": int, "device": str, "versions": dict, "actions": list,
        "tick_hz": (int, float),
    }  # fmt: skip
    whole = isinstance(raw, dict) and raw.keys() >= kinds.keys()
    if not whole or not all(isinstance(raw[name], kind) for name, kind in kinds.items()):
        raise ReplayError(f"{path}: its header is damaged")
    if len(raw["actions"]) > MAX_ACTIONS or not all(isinstance(name, str) for name in raw["actions"]):
        raise ReplayError(f"{path}: its header is damaged (actions)")
    if not 1 <= raw["threads"] <= 1024:
        raise ReplayError(f"{path}: its header is damaged (threads: {raw['threads']})")
    if not TICK_HZ[0] <= raw["tick_hz"] <= TICK_HZ[1]:
        raise ReplayError(f"{path}: its header is damaged (tick_hz: {raw['tick_hz']})")
    return Header(**{name: raw[name] for name in kinds})


def _record(record: Any, actions: int, path: Path, number: int) -> list[Any]:
    match record:
        case ["tick", int(), int(mask), None | [int(), bytes()], *graph] if 0 <= mask < 1 << actions:
            if len(graph) < 2 and all(name in TICKS for name in graph):
                return record
        case ["prompt", str()] | ["restart", int(), None | str(), str()] | ["restore", bytes()]:
            return record
    raise ReplayError(f"{path}: record {number} makes no sense")

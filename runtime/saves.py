"""Save slots: named snapshots of one world, each with a small picture, in one folder; and the autosave.

8 bytes   b"WLSLOT01"
4 bytes   CRC-32 of the rest, little-endian
rest      msgpack: name, saved_at (seconds since 1970), tick, thumbnail [height, width, bytes], snapshot
"""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import platformdirs

from runtime.errors import SnapshotError
from runtime.manifest import MAX_STATE_BYTES
from runtime.session import Session
from runtime.world import World

MAGIC = b"WLSLOT01"
THUMBNAIL = 96  # pixels at most, either side
MAX_NAME = 60  # characters
SUFFIX = ".save"


@dataclass(frozen=True)
class Slot:
    """A saved game. thumbnail: uint8 [height, width, 3]."""

    name: str
    saved_at: float
    tick: int
    thumbnail: np.ndarray
    snapshot: bytes


class Saves:
    """The folder of one world's saved games. The world's hash is in its name: another version has its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def of(world: World) -> Saves:
        return Saves(platformdirs.user_data_path("worldloop") / "saves" / f"{world.manifest.name}-{world.hash[:12]}")

    def save(self, session: Session, name: str, saved_at: float) -> None:
        """Write the session down under a name. A kill leaves the old save or the new one."""
        self._write(self._path(name), slot_of(session, name, saved_at))

    def load(self, session: Session, name: str) -> Slot:
        """Go on from a saved game; after an error the session is as it was."""
        slot = self.read(name)
        session.restore(slot.snapshot)
        return slot

    def read(self, name: str) -> Slot:
        path = self._path(name)
        try:
            if path.stat().st_size > 2 * MAX_STATE_BYTES:
                raise SnapshotError(f"{path} is too large for a saved game")
            return unpack_slot(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            known = ", ".join(self.names()) or "none"
            raise SnapshotError(f"no game is saved as {name!r}; there are: {known}") from error
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read ({error.strerror})") from error

    def names(self) -> list[str]:
        """Of all saved games, sorted; autosaves are none."""
        if not self.folder.is_dir():
            return []
        return sorted(path.stem for path in self.folder.glob(f"*{SUFFIX}") if not path.stem.startswith("~"))

    def autosave(self, session: Session, saved_at: float) -> None:
        """Write down where this process is. `finished` takes it away again: what stays tells of a crash."""
        self._write(self._own(), slot_of(session, "autosave", saved_at))

    def finished(self) -> None:
        """The game has ended as it should."""
        self._own().unlink(missing_ok=True)

    def take_crashed(self) -> Slot | None:
        """The newest autosave of a process that is no more; it is taken out of the folder, with older ones."""
        left = [path for path in self.folder.glob(f"~*{SUFFIX}") if not _alive(path)] if self.folder.is_dir() else []
        newest = None
        for path in sorted(left, key=lambda path: path.stat().st_mtime):
            try:
                newest = unpack_slot(path.read_bytes(), str(path))
            except SnapshotError:
                continue  # the crash may have been the disk's: an older one will do
            finally:
                path.unlink(missing_ok=True)
        return newest

    def _own(self) -> Path:
        return self.folder / f"~{os.getpid()}{SUFFIX}"

    def _path(self, name: str) -> Path:
        if not re.fullmatch(rf"[^\W~][\w .,'()+-]{{0,{MAX_NAME - 1}}}", name) or name != name.strip(" ."):
            raise SnapshotError(f"a save's name is made of letters, digits, spaces and -_.,'()+, got {name[:80]!r}")
        return self.folder / f"{name}{SUFFIX}"

    def _write(self, path: Path, slot: Slot) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        try:
            unfinished.write_bytes(pack_slot(slot))
            unfinished.replace(path)
        except OSError as error:
            raise SnapshotError(f"not saved: {error.strerror} ({path})") from error


def slot_of(session: Session, name: str, saved_at: float) -> Slot:
    blank = np.zeros((session.world.manifest.height, session.world.manifest.width, 3), np.uint8)
    frame = session.frame if session.frame is not None else blank
    return Slot(name, saved_at, session.tick_number, thumbnail(frame), session.snapshot())


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that it fits THUMBNAIL × THUMBNAIL."""
    step = -(-max(frame.shape[:2]) // THUMBNAIL)
    return np.ascontiguousarray(frame[::step, ::step])


def pack_slot(slot: Slot) -> bytes:
    height, width, _ = slot.thumbnail.shape
    rest = msgpack.packb(
        {"name": slot.name, "saved_at": slot.saved_at, "tick": slot.tick, "snapshot": slot.snapshot,
         "thumbnail": [height, width, slot.thumbnail.tobytes()]}
    )  # fmt: skip
    return MAGIC + zlib.crc32(rest).to_bytes(4, "little") + rest


def unpack_slot(data: bytes, where: str) -> Slot:
    if data[: len(MAGIC)] != MAGIC:
        raise SnapshotError(f"{where} is not a saved game, or one of another version")
    begin = len(MAGIC) + 4
    rest = memoryview(data)[begin:]
    if zlib.crc32(rest) != int.from_bytes(data[len(MAGIC) : begin], "little"):
        raise SnapshotError(f"{where} is damaged (its checksum differs)")
    try:
        raw = msgpack.unpackb(rest)
    except (ValueError, msgpack.UnpackException) as error:
        raise SnapshotError(f"{where} is damaged ({error})") from error
    match raw:
        case {
            "name": str(name), "saved_at": float(saved_at), "tick": int(tick), "snapshot": bytes(snapshot),
            "thumbnail": [int(height), int(width), bytes(pixels)],
        } if 0 < height <= THUMBNAIL and 0 < width <= THUMBNAIL and len(pixels) == height * width * 3:  # fmt: skip
            picture = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
            return Slot(name[:MAX_NAME], saved_at, tick, picture, snapshot)
    raise SnapshotError(f"{where} is damaged (it makes no sense)")


def _alive(path: Path) -> bool:
    """Whether the process that writes this autosave still runs."""
    number = path.stem[1:]
    if not number.isdigit() or int(number) == os.getpid():
        return number.isdigit()
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True

"""A world that can be played: opened from its file (NAME.world, one zip) or the mock one that needs no file.

Nothing in a world file is executed. Sizes are checked before anything is allocated, hashes before anything is used.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from runtime.errors import ActionError, WorldFileError
from runtime.manifest import FILE_NAME, MAX_ITEMS, Manifest, parse_manifest

DEFAULT_WORLD = "racer"
SHIPPED = Path(__file__).parent / "worlds"
MAX_MANIFEST = 4 << 20  # bytes
MAX_INFLATION = 20  # unpacked size over the file's own; weights hardly compress, so more than this is a bomb
SMALL = 64 << 20  # bytes; below this no inflation is dangerous
PIECE = 1 << 20  # bytes read at a time

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    RuntimeError,
)  # what zipfile raises

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class World:
    """hash: sha256 of the manifest, which holds the hash of every other file. path: None for the mock world."""

    manifest: Manifest
    hash: str
    path: Path | None = None

    @staticmethod
    def open(name: str | Path = DEFAULT_WORLD) -> World:
        """A shipped world by name, `mock`, or a world file by path. Checks its directory and manifest."""
        if name == "mock":
            from runtime.backends.mock import mock_world

            return mock_world()
        path = find_world(name)
        with _zip(path) as archive:
            raw = _read_manifest(archive, path)
            manifest = parse_manifest(raw, str(path))
            _check_directory(archive, manifest, path)
        return World(manifest, hashlib.sha256(raw).hexdigest(), path)

    def read(self, file: str) -> bytes:
        """One file of the world, its size and hash checked."""
        with _zip(self._path) as archive:
            return b"".join(self._pieces(archive, file))

    @contextmanager
    def unpacked(self) -> Iterator[Path]:
        """All files, checked, in a private folder that lasts as long as the `with` block."""
        with (
            tempfile.TemporaryDirectory(prefix="worldloop-", ignore_cleanup_errors=True) as folder,
            _zip(self._path) as archive,
        ):
            for file in self.manifest.files:
                target = Path(folder, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    for piece in self._pieces(archive, file):
                        out.write(piece)
            yield Path(folder)

    def start_state(self, name: str | None = None) -> State:
        """The tensors that a start brings along, checked against the manifest; possibly not all of the state."""
        start = self.manifest.start(name)
        if start is None or self.path is None:
            return {}
        where = f"{self.path}: {start.file}"
        try:
            tensors = load_safetensors(self.read(start.file))
        except (SafetensorError, ValueError, KeyError) as error:
            raise WorldFileError(f"{where} is not a safetensors file ({error}): export the world again") from error
        check_tensors(tensors, self.manifest, where)
        return tensors

    def action(self, names: Collection[str]) -> np.ndarray:
        """Pressed actions as the tick wants them: float32 [1, actions], 1 where pressed."""
        known = self.manifest.action_names
        for name in names:
            if name not in known:
                raise ActionError(
                    f"world {self.manifest.name!r} has no action {name!r}; it has: {', '.join(known) or 'none'}"
                )
        return np.array([[name in names for name in known]], np.float32)

    @property
    def _path(self) -> Path:
        assert self.path is not None, "the mock world has no files"
        return self.path

    def _pieces(self, archive: zipfile.ZipFile, file: str) -> Iterator[bytes]:
        """A file's content, never more than declared; a wrong size or hash ends in an error."""
        stored = self.manifest.files[file]
        digest, size = hashlib.sha256(), 0
        try:
            with archive.open(file) as source:
                while piece := source.read(PIECE):
                    digest.update(piece)
                    size += len(piece)
                    yield piece
        except UNREADABLE as error:
            raise WorldFileError(f"{self.path}: {file} is damaged ({error}): get the world file again") from error
        if size != stored.bytes or digest.hexdigest() != stored.sha256:
            raise WorldFileError(
                f"{self.path}: {file} does not match its hash in the manifest: get the world file again"
            )


def find_world(name: str | Path) -> Path:
    """The file of a shipped world, or the path itself."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_worlds()
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_dir():
        raise WorldFileError(f"{path} is a folder, not a world file")
    if path.suffix == ".world" or len(path.parts) > 1:
        raise WorldFileError(f"no world file at {path}: check the path; 'worldloop list' shows the shipped worlds")
    raise WorldFileError(
        f"no world {str(name)!r}; shipped are: {', '.join([*shipped, 'mock'])} (or give the path of a .world file)"
    )


def shipped_worlds() -> dict[str, Path]:
    """The worlds inside the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.world"))}


def check_tensors(tensors: Mapping[str, np.ndarray], manifest: Manifest, where: str) -> None:
    """Refuse state tensors that the world does not know, or of another shape or type."""
    for name, tensor in tensors.items():
        spec = manifest.state.get(name)
        if spec is None:
            raise WorldFileError(f"{where}: the world has no state tensor {name!r}")
        if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise WorldFileError(f"{where}: {name} must be {spec.dtype} {list(spec.shape)}, got {found}")


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise WorldFileError(f"no world file at {path}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise WorldFileError(f"{path} is not a world file, or was cut off ({error}): get it again") from error
    except OSError as error:
        raise WorldFileError(f"{path} cannot be read ({error.strerror or error})") from error
    with archive:
        yield archive


def _read_manifest(archive: zipfile.ZipFile, path: Path) -> bytes:
    try:
        info = archive.getinfo("manifest.json")
    except KeyError as error:
        raise WorldFileError(f"{path} is a zip without manifest.json, not a world file") from error
    if info.file_size > MAX_MANIFEST:
        raise WorldFileError(f"{path}: manifest.json is {info.file_size} bytes, the limit is {MAX_MANIFEST}")
    source: IO[bytes]
    try:
        with archive.open(info) as source:
            return source.read(MAX_MANIFEST + 1)
    except UNREADABLE as error:
        raise WorldFileError(f"{path}: manifest.json is damaged ({error}): get the world file again") from error


def _check_directory(archive: zipfile.ZipFile, manifest: Manifest, path: Path) -> None:
    """The zip's directory must list what the manifest lists: the same files and sizes, nothing hidden, no bomb."""
    entries = archive.infolist()
    if len(entries) > MAX_ITEMS:
        raise WorldFileError(f"{path}: {len(entries)} files, the limit is {MAX_ITEMS}")
    listed = {"manifest.json", *manifest.files}
    found = [entry.filename for entry in entries]
    if len(set(found)) != len(found):
        raise WorldFileError(f"{path}: the same file is in it twice")
    for name in found:
        if name not in listed or not FILE_NAME.fullmatch(name):
            raise WorldFileError(
                f"{path}: holds {name[:80]!r}, which its manifest does not list: not a world file of ours"
            )
    for name in sorted(listed - set(found)):
        raise WorldFileError(f"{path}: {name} is missing from it: get the world file again")
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise WorldFileError(
                f"{path}: {entry.filename} is encrypted or packed in an unknown way: export the world again"
            )
        if entry.filename != "manifest.json" and entry.file_size != manifest.files[entry.filename].bytes:
            raise WorldFileError(
                f"{path}: {entry.filename} has another size than its manifest says: get the world file again"
            )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(SMALL, MAX_INFLATION * path.stat().st_size):
        raise WorldFileError(
            f"{path}: would unpack to {unpacked >> 20} MB from {path.stat().st_size >> 20} MB: refused as a zip bomb"
        )

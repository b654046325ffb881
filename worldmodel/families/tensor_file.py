"""Read tensors from files that strangers made: nothing is executed, nothing is allocated before the header is sane."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from worldmodel.errors import CheckpointError

LARGEST_HEADER = 64 << 20  # bytes; the 14B checkpoints need 0.2 MB
LARGEST_TENSOR = 1 << 40  # numbers
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What a file says about one tensor, before any of it is read."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * BYTES[self.dtype]


def read_header(path: Path) -> dict[str, Entry]:
    """Names, types and shapes of a safetensors file, checked against each other and against the file's size."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file: its header claims {length} bytes of {size}")
            header = json.loads(file.read(length))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: not a safetensors file: its header is a {type(header).__name__}, not an object")
    entries = {
        name: _entry(path, name, raw, size - 8 - length) for name, raw in header.items() if name != "__metadata__"
    }
    claimed = sum(entry.bytes for entry in entries.values())
    if claimed != size - 8 - length:
        raise CheckpointError(f"{path}: its tensors claim {claimed} bytes and the file holds {size - 8 - length}")
    return entries


def _entry(path: Path, name: str, raw: object, available: int) -> Entry:
    try:
        assert isinstance(raw, dict)
        dtype, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        assert all(isinstance(side, int) and 0 <= side <= LARGEST_TENSOR for side in (*shape, begin, end))
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the header's entry for '{name}' is malformed") from error
    if dtype not in BYTES:
        raise CheckpointError(f"{path}: '{name}' has type {dtype}, expected one of {', '.join(BYTES)}")
    entry = Entry(dtype, shape)
    if entry.bytes != end - begin or end > available:
        raise CheckpointError(
            f"{path}: '{name}' of shape {list(shape)} needs {entry.bytes} bytes, its place in the file is "
            f"{begin}..{end} of {available}"
        )
    return entry


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file whose header has been found sane."""
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error

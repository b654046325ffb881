"""A snapshot: a session's state written down at one tick.

    8 bytes   b"WLSNAP01"
    4 bytes   length of the header, little-endian
    header    msgpack: format, world (hash), seed, tick, start, prompt, held (actions of the latest tick; may be
              missing), tensors {name: [dtype, shape, offset]}, crc
    arrays    the tensors' bytes, one after the other, little-endian, C order; crc is the CRC-32 of them all

Reading checks everything against the world before a single array is made: whole or refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from runtime.errors import SnapshotError
from runtime.manifest import MAX_TEXT, TensorSpec
from runtime.world import State, World

MAGIC = b"WLSNAP01"
FORMAT = 1
MAX_HEADER = 1 << 20  # bytes
EMBEDDING = (
    "session.prompt"  # the prompt's embedding travels with the state: another backend might compute it differently
)


@dataclass(frozen=True)
class About:
    """What a snapshot says besides the state. world: the world's hash. start: None for the default.

    held: the actions of the latest tick, which frames in flight were made for.
    """

    world: str
    seed: int
    tick: int
    start: str | None
    prompt: str
    held: frozenset[str]


def pack(about: About, arrays: Mapping[str, np.ndarray]) -> bytes:
    tensors, parts, offset, crc = {}, [], 0, 0
    for name, array in arrays.items():
        part = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        tensors[name] = [array.dtype.name, list(array.shape), offset]
        parts.append(part)
        offset, crc = offset + len(part), zlib.crc32(part, crc)
    fields = {"format": FORMAT, "world": about.world, "seed": about.seed, "tick": about.tick, "start": about.start,
              "prompt": about.prompt, "held": sorted(about.held), "tensors": tensors, "crc": crc}  # fmt: skip
    header = msgpack.packb(fields)
    return b"".join([MAGIC, len(header).to_bytes(4, "little"), header, *parts])


def unpack(data: bytes, world: World) -> tuple[About, State]:
    """The session's facts and arrays; arrays are views of `data`."""
    header, body = _split(data)
    if header.get("format") != FORMAT:
        raise SnapshotError(f"snapshot format {header.get('format')!r:.40}, this version reads {FORMAT}: save again")
    about = _about(header)
    if about.world != world.hash:
        raise SnapshotError(
            f"the snapshot belongs to another world or another version of {world.manifest.name!r}: load that world"
        )
    if not about.held <= {*world.manifest.action_names}:
        raise SnapshotError("the snapshot is damaged (it holds actions that this world does not have): save again")
    wanted = {**world.manifest.state, EMBEDDING: TensorSpec((1, *world.manifest.prompt), np.dtype(np.float32))}
    tensors = header.get("tensors")
    if not isinstance(tensors, dict) or set(tensors) != set(wanted):
        raise SnapshotError("the snapshot does not hold the whole state of this world: save again")
    if sum(spec.nbytes for spec in wanted.values()) != len(body):
        raise SnapshotError("the snapshot was cut off or is damaged: save again")
    if zlib.crc32(body) != header.get("crc"):
        raise SnapshotError("the snapshot is damaged (its checksum differs): save again")
    return about, {name: _array(name, tensors[name], spec, body) for name, spec in wanted.items()}


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    if data[: len(MAGIC)] != MAGIC:
        raise SnapshotError("this is not a snapshot (or one of another version): save again")
    begin = len(MAGIC) + 4
    size = int.from_bytes(data[len(MAGIC) : begin], "little")
    if size > MAX_HEADER or begin + size > len(data):
        raise SnapshotError("the snapshot was cut off or is damaged: save again")
    try:
        header = msgpack.unpackb(data[begin : begin + size])
    except (ValueError, msgpack.UnpackException) as error:
        raise SnapshotError(f"the snapshot is damaged ({error}): save again") from error
    if not isinstance(header, dict):
        raise SnapshotError("the snapshot is damaged (no header): save again")
    return header, memoryview(data)[begin + size :]


def _about(header: dict[str, Any]) -> About:
    world, seed, tick, start, prompt = (header.get(name) for name in ("world", "seed", "tick", "start", "prompt"))
    numbers = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 63 for n in (seed, tick))
    texts = (
        isinstance(world, str)
        and isinstance(prompt, str)
        and len(prompt) <= MAX_TEXT
        and (start is None or isinstance(start, str))
    )
    held = header.get("held", [])
    names = isinstance(held, list) and all(isinstance(name, str) for name in held)
    if not (numbers and texts and names):
        raise SnapshotError("the snapshot is damaged (its header makes no sense): save again")
    return About(world, seed, tick, start, prompt, frozenset(held))  # type: ignore[arg-type]


def _array(name: str, entry: object, spec: TensorSpec, body: memoryview) -> np.ndarray:
    match entry:
        case [str(dtype), list(shape), int(offset)] if dtype == spec.dtype.name and tuple(shape) == spec.shape:
            if 0 <= offset <= len(body) - spec.nbytes:
                values = np.frombuffer(body, spec.dtype.newbyteorder("<"), spec.nbytes // spec.dtype.itemsize, offset)
                return values.astype(spec.dtype, copy=False).reshape(spec.shape)
    raise SnapshotError(f"the snapshot's {name} does not fit this world: save again")

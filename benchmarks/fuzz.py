"""Damage files at random and open them: only typed errors, no hang, no allocation beyond the declared limits.

    python benchmarks/fuzz.py --mutations 100000

A mutation flips bits, overwrites, cuts, repeats or inserts bytes; half of them repair the file's checksum afterwards,
so that the checks behind it are reached too.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from runtime.bindings_file import read_bindings
from runtime.errors import WorldloopError
from runtime.machine import peak_mb
from runtime.replay import MAGIC as REPLAY_MAGIC
from runtime.replay import Recorder, open_replay
from runtime.saves import MAGIC as SLOT_MAGIC
from runtime.saves import pack_slot, slot_of, unpack_slot
from runtime.session import Session
from runtime.snapshot import unpack
from runtime.world import World

MOST_SECONDS = 2.0  # for one file
MOST_MB = 3000  # of address space beyond what the program has at the beginning


def mutate(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(made) + 1), rng.choice((1, 1, 2, 4, 16))
        kind = rng.randrange(5)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at : at + length] = rng.choice((bytes([255]) * length, bytes(length), rng.randbytes(length)))
        elif kind == 2:
            del made[at:]
        elif kind == 3:
            made[at:at] = made[at : at + length]
        else:
            made[at:at] = rng.randbytes(length)
    return bytes(made)


def repair_slot(data: bytes) -> bytes:
    begin = len(SLOT_MAGIC) + 4
    return SLOT_MAGIC + zlib.crc32(data[begin:]).to_bytes(4, "little") + data[begin:]


def repair_replay(data: bytes) -> bytes:
    """Right checksums for as many records as their lengths allow."""
    made, at = bytearray(data), len(REPLAY_MAGIC)
    while at + 8 <= len(made):
        size = int.from_bytes(made[at : at + 4], "little")
        if at + 8 + size > len(made):
            break
        made[at + 4 : at + 8] = zlib.crc32(made[at + 8 : at + 8 + size]).to_bytes(4, "little")
        at += 8 + size
    return bytes(made)


def repair_snapshot(data: bytes) -> bytes:
    """The checksum covers the arrays only: the header is checked field by field and needs no repair."""
    return data


Reader = tuple[bytes, Callable[[bytes], bytes], Callable[[bytes], object]]


def readers(folder: Path) -> dict[str, Reader]:
    """kind: (a whole file, how its checksum is repaired, how it is opened)."""
    session = Session(World.open("mock"), seed=1)
    recorder = Recorder(folder / "r.replay", session, "mock")
    for tick in range(40):
        recorder.tick(session, session.tick({"gas"} if tick % 3 else {"left"}))
    recorder.restored(session.snapshot(), session)
    recorder.close()
    world = folder / "w.world"
    bindings = b'[mock]\ngas = ["w", "pad:a"]\nleft = ["a", "mouse:left"]\n[other]\nfly = ["x"]\n'

    def as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def opened(data: bytes) -> object:
            (folder / name).write_bytes(data)
            return read(folder / name)

        return opened

    def whole_world(path: Path) -> object:
        opened = World.open(path)
        for file in opened.manifest.files:
            opened.read(file)
        return opened.start_state()

    small_world(world)
    return {
        "snapshot": (session.snapshot(), repair_snapshot, lambda data: unpack(data, session.world)),
        "slot": (pack_slot(slot_of(session, "x", 1.0)), repair_slot, lambda data: unpack_slot(data, "it")),
        "replay": ((folder / "r.replay").read_bytes(), repair_replay, as_file("f.replay", open_replay)),
        "world": (world.read_bytes(), lambda data: data, as_file("f.world", whole_world)),
        "bindings": (
            bindings, lambda data: data,
            as_file("b.toml", lambda path: read_bindings(path, session.world.manifest)),
        ),
    }  # fmt: skip


def small_world(path: Path) -> None:
    """A world file with a start and nothing to run, stored without compression so that mutations reach the content."""
    import numpy as np
    from safetensors.numpy import save

    from export.world_file import write_world
    from runtime.backends.mock import MANIFEST

    about = {key: value for key, value in MANIFEST.items() if key not in ("format", "files")}
    start = {"name": "road", "prompt": "red", "file": "starts/road.safetensors"}
    files = {"starts/road.safetensors": save({"car": np.ones((1, 4), np.float32)}), "weights.bin": bytes(range(256))}
    write_world(path, {**about, "starts": [start]}, files)
    entries = {}
    with zipfile.ZipFile(path) as packed:
        entries = {name: packed.read(name) for name in packed.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as plain:
        for name, data in entries.items():
            plain.writestr(zipfile.ZipInfo(name), data)


def fuzz(reader: Reader, mutations: int, rng: random.Random) -> tuple[int, float]:
    """How many damaged files were refused, and the longest time for one. Anything but a typed error comes out."""
    whole, repair, read = reader
    refused, slowest = 0, 0.0
    for _ in range(mutations):
        data = mutate(whole, rng)
        data = repair(data) if rng.random() < 0.5 else data
        begun = time.perf_counter()
        try:
            read(data)
        except WorldloopError:
            refused += 1
        slowest = max(slowest, time.perf_counter() - begun)
    return refused, slowest


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--mutations", type=int, default=100_000)
    options.add_argument("--kinds", nargs="*", default=["snapshot", "slot", "replay", "world", "bindings"])
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        known = readers(Path(folder))
        now = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (now + (MOST_MB << 20),) * 2)
        for kind in given.kinds:
            begun = time.perf_counter()
            refused, slowest = fuzz(known[kind], given.mutations, random.Random(given.seed))
            print(
                f"{kind}: {given.mutations} mutations, {refused} refused, no other error; "
                f"slowest {slowest * 1000:.0f} ms, "
                f"peak {peak_mb()} MB, {time.perf_counter() - begun:.0f} s", flush=True,
            )  # fmt: skip
            if slowest > MOST_SECONDS:
                raise SystemExit(f"{kind}: one file took {slowest:.1f} s")


if __name__ == "__main__":
    main()

"""Record a long game of a world and play it again in a fresh process: every frame must be the same bytes.

    python benchmarks/replays.py mock --ticks 100000
    python benchmarks/replays.py racer --ticks 3000

Keys change at random; now and then the prompt changes, the game is saved, loaded and begun again.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from runtime.cli.replay import session_of
from runtime.replay import Recorder, agrees, open_replay, play_again, same_machine
from runtime.session import Session
from runtime.world import World

EVENT_EVERY = 500  # ticks between prompts, loads and restarts, on average
HELD = 8  # ticks that a key is held, on average


def record(path: Path, world: str, ticks: int, rng: random.Random) -> str:
    """Play and write it down; the checksum of all frames."""
    session = Session(World.open(world), seed=7)
    recorder, saved, crc = Recorder(path, session, world), session.snapshot(), 0
    names, prompts = session.world.manifest.action_names, session.world.manifest.prompts
    pressed: set[str] = set()
    for _ in range(ticks):
        event = rng.randrange(4 * EVENT_EVERY)
        if event == 0:
            session.set_prompt(rng.choice(prompts))
        elif event == 1:
            saved = session.snapshot()
        elif event == 2:
            session.restore(saved)
            recorder.restored(saved, session)
        elif event == 3:
            session.restart(seed=rng.randrange(1 << 40))
            recorder.restarted(session)
        if rng.randrange(HELD) == 0:
            pressed = {name for name in names if rng.random() < 0.4}
        frame = session.tick(pressed)
        recorder.tick(session, frame)
        crc = zlib.crc32(frame.tobytes(), crc)
    recorder.close()
    return f"{crc:08x}"


def play(path: Path) -> None:
    """In the fresh process: the checksum of all frames, and whether the recorded checksums agree."""
    replay = open_replay(path)
    session = session_of(replay.header, World.open(replay.header.world))
    crc, wrong, exact = 0, 0, same_machine(replay.header, session)
    for played in play_again(replay, session):
        crc = zlib.crc32(played.frame.tobytes(), crc)
        wrong += not agrees(played, exact)
    print(f"{crc:08x} {replay.ticks} {wrong} {'exact' if exact else 'tolerant'}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("world", nargs="?", default="mock")
    options.add_argument("--ticks", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--play", type=Path, help="play this replay and print its checksum")
    given = options.parse_args()
    if given.play:
        return play(given.play)
    with tempfile.TemporaryDirectory() as folder:
        path, begun = Path(folder, "game.replay"), time.perf_counter()
        recorded = record(path, given.world, given.ticks, random.Random(given.seed))
        took, size = time.perf_counter() - begun, path.stat().st_size
        begun = time.perf_counter()
        played = subprocess.run(
            [sys.executable, __file__, "--play", path], check=True, capture_output=True, text=True
        ).stdout.split()  # fmt: skip
    same = played == [recorded, str(given.ticks), "0", "exact"]
    print(
        f"{given.world}: {given.ticks} ticks recorded in {took:.0f} s ({size / given.ticks:.0f} bytes a tick), "
        f"played again in a fresh process in {time.perf_counter() - begun:.0f} s: "
        f"{'the same bytes' if same else f'OTHER FRAMES ({recorded} recorded, played {played})'}"
    )
    raise SystemExit(not same)


if __name__ == "__main__":
    main()

"""Kill recordings with SIGKILL at random moments: every file must open, with at most one second lost.

python benchmarks/kill.py --kills 200
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runtime.replay import open_replay, play_again
from runtime.session import Session
from runtime.world import World

CHILD = """
import sys, random; sys.path.insert(0, sys.argv[2])
from pathlib import Path
from runtime.replay import Recorder; from runtime.session import Session; from runtime.world import World
session = Session(World.open("mock"), seed=1)
recorder, rng = Recorder(Path(sys.argv[1]), session, "mock"), random.Random(0)
while True:
    frame = session.tick({name for name in session.world.manifest.action_names if rng.random() < 0.4})
    recorder.tick(session, frame)
    print(session.tick_number, flush=True)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    rng, lost, torn, bad = random.Random(given.seed), [], 0, 0
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.kills):
            path = Path(folder, f"{number}.replay")
            child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(root)], stdout=subprocess.PIPE)
            assert child.stdout is not None
            child.stdout.readline()  # the first tick is made
            time.sleep(rng.random() * 0.2)
            child.send_signal(signal.SIGKILL)
            ticks = [int(line) for line in child.stdout.read().split()]  # what had been played
            child.wait()
            replay = open_replay(path)
            torn += replay.repaired_tail_bytes > 0
            lost.append((ticks[-1] if ticks else 1) - replay.ticks)
            if number % 20 == 0:  # and it plays
                played = list(play_again(replay, Session(World.open("mock"), seed=1)))
                bad += len(played) != replay.ticks
            path.unlink()
    print(
        f"{given.kills} kills: all files open, {torn} torn tails repaired, "
        f"at most {max(lost)} ticks lost, of 60 a second"
    )
    raise SystemExit(max(lost) > 60 or bad > 0)


if __name__ == "__main__":
    main()

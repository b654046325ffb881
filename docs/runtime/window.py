"""Make the picture of the window in docs/runtime.md, in a real window under Xvfb with real keys from xdotool.

PYTHONPATH=.:tests python docs/runtime/window.py [WORLD]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from real_window import RealWindow, records_so_far

PROMPT = "race on golden yellow asphalt with meadows of deep purple, the sun low in front of the car, long shadows"


def main() -> None:
    world = sys.argv[1] if len(sys.argv) > 1 else "racer"
    with tempfile.TemporaryDirectory() as name:
        replay = Path(name, "game.replay")
        play = ("play", world, "--start", "driving", "--seed", "3", "--record", replay)
        with RealWindow(Path(name), *play, size=(576, 576)) as window:
            window.wait("the first tick", lambda: records_so_far(replay))
            window.do("key", "h", "keydown", "Up")
            window.wait("a drive", lambda: len(records_so_far(replay)) > 40)
            window.do("key", "F5", "key", "Tab")
            window.do("type", PROMPT)
            Image.fromarray(window.screenshot()).save(Path(__file__).with_name("window.png"), optimize=True)


if __name__ == "__main__":
    main()

"""A real window on a screen of its own (Xvfb), driven by real key events (xdotool), looked at by screenshots."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from runtime.replay import MAGIC, split_records

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # seconds; on a busy machine everything comes late
MISSING = [program for program in ("Xvfb", "xdotool") if shutil.which(program) is None]


class RealWindow:
    """`worldloop` with some arguments in a window. Use with `with`; leaving it kills what still runs."""

    def __init__(self, folder: Path, *arguments: str | Path, size: tuple[int, int]) -> None:
        """size: of the screen, in pixels; the window opens in its middle."""
        self.folder, self.size = folder, size
        self._display, numbers = os.pipe()
        screen = f"{size[0]}x{size[1]}x24"
        # -noreset: it would begin anew, keyboard and all, when a screenshot is the first client to come and go.
        self._xvfb = subprocess.Popen(
            ["Xvfb", "-displayfd", str(numbers), "-screen", "0", screen, "-nolisten", "tcp", "-noreset"],
            pass_fds=[numbers], stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(numbers)
        self.display = f":{os.read(self._display, 16).decode().strip()}"
        self.environment = {
            **os.environ, "DISPLAY": self.display, "SDL_VIDEODRIVER": "x11", "SDL_AUDIODRIVER": "dummy",
            "XDG_DATA_HOME": str(folder / "data"), "XDG_CONFIG_HOME": str(folder / "config"),
        }  # fmt: skip
        command = [sys.executable, "-m", "runtime.cli", *map(str, arguments)]
        self.program = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> RealWindow:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.program, self._xvfb):
            process.kill()
            process.wait()
        os.close(self._display)

    def do(self, *words: str) -> None:
        """What xdotool calls it: key, keydown, keyup, type …"""
        subprocess.run(["xdotool", *words], env=self.environment, check=True, timeout=PATIENCE)

    def screenshot(self) -> np.ndarray:
        """uint8 [height, width, 3] of the whole screen."""
        from PIL import ImageGrab

        return np.asarray(ImageGrab.grab(xdisplay=self.display).convert("RGB"))

    def wait(self, what: str, happened: Callable[[], Any]) -> Any:
        """Look again and again until it gives something true; what that was."""
        end = time.monotonic() + PATIENCE
        while not (found := happened()):
            if self.program.poll() is not None or time.monotonic() > end:
                self.program.kill()
                raise AssertionError(f"{what} has not happened: {self.program.communicate()[1][-2000:]}")
            time.sleep(0.02)
        return found

    def finished(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error, when the program has ended."""
        out, err = self.program.communicate(timeout=PATIENCE)
        return self.program.returncode, out, err


def records_so_far(path: Path) -> list[list[Any]]:
    """Of a replay that is being written, without the header; the file is not touched."""
    data = path.read_bytes() if path.exists() else b""
    if len(data) <= len(MAGIC):
        return []
    payloads, _ = split_records(data, str(path))
    return [msgpack.unpackb(payload) for payload in payloads[1:]]

"""How long this process has been stopped (SIGSTOP, a debugger), so that it does not count as time spent at work."""

from __future__ import annotations

import threading
import time

BEAT = 1.0  # seconds
LONG = 10.0  # seconds between beats that no amount of work around them explains


class Stopped:
    """A thread that should wake every second; where it has not for long, nothing of the process has run."""

    def __init__(self) -> None:
        self._lock, self._over = threading.Lock(), threading.Event()
        self._last, self._total = time.monotonic(), 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stopped:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seconds(self) -> float:
        """That it has been stopped for so far."""
        with self._lock:
            now = time.monotonic()
            if now - self._last > LONG:
                self._total += now - self._last
            self._last = now
            return self._total

    def _run(self) -> None:
        while not self._over.wait(BEAT):
            self.seconds()

"""Watching a replay: forward at any speed, and to any tick.

On the way, moments are kept as snapshots, as closely as their memory allows; to go back, only the ticks from the
nearest one are made again.
"""

from __future__ import annotations

import numpy as np

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.loop import Screen, Status
from runtime.manifest import Action
from runtime.replay import Played, Replay, agrees, check_world, execute
from runtime.session import Session

KEPT_BYTES = 256 << 20  # of snapshots
LEAP = 5  # seconds that one key goes back or on
FASTEST = 64  # times the world's own rate
KEYS = (
    Action("back", ("left",)), Action("on", ("right",)), Action("faster", ("up",)), Action("slower", ("down",)),
)  # fmt: skip


class Playback:
    """A replay on a fresh session of its world. at: how many of its ticks lie behind."""

    def __init__(self, replay: Replay, session: Session, kept_bytes: int = KEPT_BYTES) -> None:
        check_world(replay, session)
        self.replay, self.session, self.kept_bytes = replay, session, kept_bytes
        self.ticks = replay.ticks
        self.at = 0
        self.interval = max(1, round(replay.header.tick_hz))  # ticks from one kept moment to the next
        self._record = 0  # the next one
        self._kept: dict[int, tuple[int, bytes]] = {}  # at: (record, snapshot)
        self._keep()

    def step(self) -> Played | None:
        """Play the next tick; None when there is none."""
        while self._record < len(self.replay.records):
            record = self.replay.records[self._record]
            if record[0] == "tick" and self.at % self.interval == 0 and self.at not in self._kept:
                self._keep()
            self._record += 1
            frame = execute(record, self.replay.header.actions, self.session)
            if frame is not None:
                self.at += 1
                return Played(self.at - 1, frame, record[3])
        return None

    def leap(self, tick: int) -> None:
        """Go to the moment from which the fewest `step`s lead to the frame of `tick`, counted from 1."""
        nearest = max(at for at in self._kept if at < max(1, tick))
        if tick <= self.at or nearest > self.at:
            record, snapshot = self._kept[nearest]
            self.session.restore(snapshot)
            self.at, self._record = nearest, record

    def _keep(self) -> None:
        """Keep this moment; when memory is full, every second one goes."""
        self._kept[self.at] = self._record, self.session.snapshot()
        while sum(len(snapshot) for _, snapshot in self._kept.values()) > self.kept_bytes and len(self._kept) > 1:
            self.interval *= 2
            self._kept = {at: kept for at, kept in self._kept.items() if at % self.interval == 0}


def watch(
    playback: Playback, controls: Controls, screen: Screen, clock: Clock, *, exact: bool, begin: int = 0, speed: int = 1
) -> int | None:
    """Show a replay until its end or until the window closes; the first tick seen to differ from the recording.

    controls: made of KEYS. exact: see `agrees`. begin: the tick to go to first. Each pass of the loop shows one frame;
    a way that takes longer than that is shown as it is gone.
    """
    manifest = playback.session.world.manifest
    frame = np.zeros((manifest.height, manifest.width, 3), np.uint8)
    goal, paused, held, differs = begin, False, frozenset[str](), None
    leap = round(LEAP * manifest.tick_hz)
    while screen.is_open and (paused or playback.at < playback.ticks):
        clock.wait()
        asked = [request.kind for request in screen.requests()]
        pressed, held_before = controls.read().actions, held
        new, held = pressed - held_before, pressed
        paused ^= asked.count("pause") % 2 == 1
        speed = min(FASTEST, speed * 2) if "faster" in new else max(1, speed // 2) if "slower" in new else speed
        sought = {"back": playback.at - leap, "on": max(goal, playback.at) + leap}
        for tick in [*(sought[key] for key in sorted(new & set(sought))), *([1] if "restart" in asked else [])]:
            goal = min(max(1, tick), playback.ticks)
            playback.leap(goal)
        ahead = 1 if "step" in asked else 0 if paused else speed
        goal = min(max(goal, playback.at + ahead), playback.ticks)
        until = clock.due + clock.period
        while playback.at < goal and (played := playback.step()) is not None:
            frame = played.frame
            if not agrees(played, exact):
                differs = played.index if differs is None else min(differs, played.index)
            if clock.now() >= until:
                break
        if new or asked:
            screen.notify(f"tick {playback.at} of {playback.ticks}, {speed}×")
        session, late = playback.session, clock.late_ticks
        screen.show(frame, Status(session.tick_number, 0.0, late, None, session.prompt, session.seed, paused))
    return differs

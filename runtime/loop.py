"""The loop of a game: one pass is one tick. With a window and a clock, or from a script as fast as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from runtime.actions_file import Line
from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.errors import PromptError, SnapshotError
from runtime.presenters import Presenter
from runtime.replay import Recorder
from runtime.session import Session

Companion = Callable[[frozenset[str]], np.ndarray]  # pressed actions → a picture to show beside the frame


@dataclass
class Report:
    """What happened: seconds that every tick took, and how many were late."""

    tick_s: list[float] = field(default_factory=list)
    late_ticks: int = 0


@dataclass(frozen=True)
class Request:
    """What the player asks of the program, not of the world. kind: pause, step, restart, save, load or prompt."""

    kind: str
    text: str = ""


@dataclass(frozen=True)
class Status:
    """What the HUD shows. response: ticks from the newest key event to the frame that answers it, None before."""

    tick: int
    tick_ms: float
    late_ticks: int
    response: float | None
    prompt: str
    seed: int
    paused: bool


class Screen(Protocol):
    is_open: bool

    def requests(self) -> list[Request]:
        """What the player has asked for since the last call."""

    def show(self, frame: np.ndarray, status: Status) -> None: ...

    def notify(self, text: str) -> None:
        """Show a line for a moment."""


def play(
    session: Session, controls: Controls, screen: Screen, clock: Clock, desk: Desk,
    presenters: Iterable[Presenter] = (), companion: Companion | None = None,
) -> Report:  # fmt: skip
    """Run until the window closes. Each pass of the loop is one tick."""
    report, response, paused = Report(), None, False
    frame = np.zeros((session.world.manifest.height, session.world.manifest.width, 3), np.uint8)
    while screen.is_open:
        clock.wait()
        requests = screen.requests()
        paused ^= sum(request.kind == "pause" for request in requests) % 2 == 1
        desk.obey(requests, session, screen)
        if not paused or any(request.kind == "step" for request in requests):
            pressed = controls.read()  # as late as possible, so that the next frame answers it
            begun = clock.now()
            frame = session.tick(pressed.actions)
            report.tick_s.append(clock.now() - begun)
            desk.record(session, frame)
            if companion is not None:
                frame = beside(frame, companion(pressed.actions))
            for presenter in presenters:
                presenter.show(frame)
            if pressed.arrived is not None:
                response = (clock.now() - pressed.arrived) / clock.period
        if requests or paused:
            clock.restart()  # saving, a new prompt and pauses take time that is no tick's
        last_ms = 1000 * report.tick_s[-1] if report.tick_s else 0.0
        screen.show(
            frame,
            Status(session.tick_number, last_ms, clock.late_ticks, response, session.prompt, session.seed, paused),
        )
    report.late_ticks = clock.late_ticks
    return report


def play_script(
    session: Session, script: Sequence[Line], ticks: int, desk: Desk, presenters: Iterable[Presenter] = (),
    companion: Companion | None = None, now: Callable[[], float] = time.perf_counter,
) -> Report:  # fmt: skip
    """Play `ticks` ticks without a screen, after the script's end with nothing pressed. Late: above a period."""
    report, period = Report(), 1.0 / session.world.manifest.tick_hz
    for number in range(ticks):
        line = script[number] if number < len(script) else Line()
        if line.prompt is not None:
            session.set_prompt(line.prompt)
        begun = now()
        frame = session.tick(line.actions)
        report.tick_s.append(now() - begun)
        desk.record(session, frame)
        if companion is not None:
            frame = beside(frame, companion(line.actions))
        for presenter in presenters:
            presenter.show(frame)
    report.late_ticks = sum(seconds > period for seconds in report.tick_s)
    return report


@dataclass
class Desk:
    """Where a game is written down: the replay, if one is made, and the quick save."""

    recorder: Recorder | None = None
    save_file: Path | None = None

    def record(self, session: Session, frame: np.ndarray) -> None:
        if self.recorder:
            self.recorder.tick(session, frame)

    def obey(self, requests: list[Request], session: Session, screen: Screen) -> None:
        """Do what the player asks of the session. What cannot be done is said on the screen, and the game goes on."""
        for request in requests:
            try:
                if request.kind == "prompt":
                    session.set_prompt(request.text)
                elif request.kind == "restart":
                    self._restart(session)
                elif request.kind == "save":
                    screen.notify(self._save(session))
                elif request.kind == "load":
                    screen.notify(self._load(session))
            except (PromptError, SnapshotError) as error:
                screen.notify(str(error))

    def _restart(self, session: Session) -> None:
        session.restart()
        if self.recorder:
            self.recorder.restarted(session)

    def _save(self, session: Session) -> str:
        assert self.save_file is not None, "a game in a window has a place for its quick save"
        data = session.snapshot()
        try:
            self.save_file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self.save_file.with_suffix(".part")
            unfinished.write_bytes(data)
            unfinished.replace(self.save_file)  # so that a kill leaves the old save or the new one
        except OSError as error:
            return f"not saved: {error.strerror}"
        return f"saved at tick {session.tick_number}"

    def _load(self, session: Session) -> str:
        assert self.save_file is not None, "a game in a window has a place for its quick save"
        try:
            data = self.save_file.read_bytes()
        except FileNotFoundError:
            return "nothing saved yet: F5 saves"
        except OSError as error:
            return f"not loaded: {error.strerror}"
        session.restore(data)
        if self.recorder:
            self.recorder.restored(data, session)
        return f"loaded tick {session.tick_number}"


def beside(frame: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two pictures side by side, the right one brought to the left one's height by repeating or dropping pixels."""
    height = frame.shape[0]
    rows = np.arange(height) * other.shape[0] // height
    columns = np.arange(round(other.shape[1] * height / other.shape[0])) * other.shape[0] // height
    return np.concatenate([frame, other[rows][:, columns.clip(max=other.shape[1] - 1)]], axis=1)

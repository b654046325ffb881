"""The loop of a game: one pass is one tick. With a window and a clock, or from a script as fast as it goes."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from runtime.actions_file import Line
from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.errors import PromptError, SnapshotError, UsageError
from runtime.governor import SKIPPED_AT_MOST, Governor, Pipe, Wishes
from runtime.presenters import Presenter
from runtime.prompt import way_to
from runtime.replay import Recorder
from runtime.saves import Saves
from runtime.session import Session

AUTOSAVE_SECONDS = 10

Companion = Callable[[frozenset[str]], np.ndarray]  # pressed actions → a picture to show beside the frame


@dataclass
class Report:
    """What happened: seconds that every tick took, and how many were late."""

    tick_s: list[float] = field(default_factory=list)
    late_ticks: int = 0


@dataclass(frozen=True)
class Request:
    """What the player asks of the program, not of the world; text: the prompt, or the name to save as.

    kind: pause, step, restart, save, save_as, load, next_save, fork, branch or prompt.
    """

    kind: str
    text: str = ""


@dataclass(frozen=True)
class Status:
    """What the HUD shows. response: ticks from the newest input event to the frame that answers it, None before.

    graph: that made this frame. wishes: the player's. answered: id of the newest input that the frame knows. branch:
    of the timeline. past: seconds that can be rewound.
    """

    tick: int
    tick_ms: float
    late_ticks: int
    response: float | None
    prompt: str
    seed: int
    paused: bool
    graph: str = "tick"
    wishes: Wishes = Wishes()  # noqa: RUF009, it is frozen
    answered: int = 0
    branch: str = ""
    past: float = 0.0


class Screen(Protocol):
    is_open: bool
    rewinding: bool  # the rewind key is held

    def requests(self) -> list[Request]:
        """What the player has asked for since the last call."""

    def show(self, frame: np.ndarray, status: Status) -> None: ...

    def notify(self, text: str, picture: np.ndarray | None = None) -> None:
        """Show a line for a moment, beside a small picture if there is one."""


def play(
    session: Session, controls: Controls, screen: Screen, clock: Clock, desk: Desk,
    presenters: Iterable[Presenter] = (), companion: Companion | None = None, wishes: Wishes | None = None,
) -> Report:  # fmt: skip
    """Run until the window closes. Each pass of the loop is one tick."""
    report, response, paused, stood, skipped = Report(), None, False, False, 0
    governor = Governor(session.graphs, wishes)
    governor.rehearse(session, clock.now)
    told = Pipe(session.in_flight if governor.wishes.answer == "off" else 0)
    clock.patience = SKIPPED_AT_MOST + 1 if governor.wishes.policy == "skip" else 1
    frame = np.zeros((session.world.manifest.height, session.world.manifest.width, 3), np.uint8)
    while screen.is_open:
        clock.wait(governor.lead(clock.period))
        requests = screen.requests()
        paused ^= sum(request.kind == "pause" for request in requests) % 2 == 1
        if requests:
            desk.obey(requests, session, screen)
        rewinding = screen.rewinding and session.timeline is not None and bool(session.timeline.branch.steps)
        ticking = not rewinding and (not paused or any(request.kind == "step" for request in requests))
        arrived = None
        if rewinding:
            frame = session.rewind()
            desk.went_elsewhere = True
        elif ticking:
            desk.before_tick(session)
            pressed = controls.read()  # as late as possible, so that the next frame answers it
            arrived, actions = pressed.arrived, told(pressed.actions)
            begun = clock.now()
            graph = governor.choose(clock.due - begun, actions != session.last_action)
            frame = session.tick(actions, graph=graph, answers=pressed.newest)
            report.tick_s.append(clock.now() - begun)
            governor.measured(graph, report.tick_s[-1])
            desk.record(session, frame)
            if companion is not None:
                frame = beside(frame, companion(actions))
            for presenter in presenters:
                presenter.show(frame)
        elif requests and session.frame is not None and companion is None:
            frame = session.frame  # of another branch, perhaps
        behind = clock.now() > clock.due and governor.wishes.policy == "skip"
        skipped = skipped + 1 if behind and skipped < SKIPPED_AT_MOST else 0
        if not skipped:
            clock.hold()
            last_ms = 1000 * report.tick_s[-1] if report.tick_s else 0.0
            screen.show(frame, _status(session, clock, governor, last_ms, response, paused))
        if arrived is not None and not stood:  # what was pressed while the world stood still is nothing to answer
            response = (clock.now() - arrived) / clock.period
        stood = not ticking
        if requests or paused or rewinding:
            clock.restart()  # saving, a new prompt and pauses take time that is no tick's
    report.late_ticks = clock.late_ticks
    desk.finished()
    return report


def _status(
    session: Session, clock: Clock, governor: Governor, tick_ms: float, response: float | None, paused: bool
) -> Status:
    timeline = session.timeline
    past = (session.tick_number - timeline.first) * clock.period if timeline else 0.0
    return Status(
        session.tick_number, tick_ms, clock.late_ticks, response, session.prompt, session.seed, paused,
        session.last_graph, governor.wishes, session.answered, timeline.current if timeline else "", past,
    )  # fmt: skip


def play_script(
    session: Session, script: Sequence[Line], ticks: int, desk: Desk, presenters: Iterable[Presenter] = (),
    companion: Companion | None = None, now: Callable[[], float] = time.perf_counter,
) -> Report:  # fmt: skip
    """Play `ticks` ticks without a screen, after the script's end with nothing pressed. Late: above a period."""
    report, period = Report(), 1.0 / session.world.manifest.tick_hz
    for number in range(ticks):
        line = script[number] if number < len(script) else Line()
        if line.prompt is not None:
            desk.turn(session, line.prompt, line.over)
        desk.before_tick(session)
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
    """Where a game is written down: the replay, if one is made, the saved games and the autosave.

    slot: the name that save and load mean. went_elsewhere: the session has moved in time since the last tick. blend:
    ticks in which a prompt that is asked for is reached. way: the prompts of the next ticks.
    """

    recorder: Recorder | None = None
    saves: Saves | None = None
    wall_time: Callable[[], float] = time.time
    slot: str = "quick"
    went_elsewhere: bool = False
    blend: int = 1
    way: deque[str] = field(default_factory=deque)

    def record(self, session: Session, frame: np.ndarray) -> None:
        if self.recorder:
            self.recorder.tick(session, frame)
        if self.saves and session.tick_number % round(AUTOSAVE_SECONDS * session.world.manifest.tick_hz) == 0:
            with contextlib.suppress(SnapshotError):  # a full disk must not end the game; saving by hand says so
                self.saves.autosave(session, self.wall_time())

    def before_tick(self, session: Session) -> None:
        """The game goes on from wherever it was moved to: the replay needs to know where that is."""
        if self.went_elsewhere and self.recorder:
            self.recorder.restored(session.snapshot(), session)
        if self.went_elsewhere:
            self.way.clear()
        self.went_elsewhere = False
        if self.way and (prompt := self.way.popleft()) != session.prompt:
            session.set_prompt(prompt)

    def turn(self, session: Session, text: str, over: int) -> None:
        """Turn the world towards a text in so many ticks, from the next one on."""
        way = way_to(session.prompt, text, over)
        session.set_prompt(way[0])
        self.way = deque(way)

    def resume(self, session: Session) -> str | None:
        """After a crash: go on from the autosave. Says so, or None if the last game ended as it should."""
        slot = self.saves.take_crashed() if self.saves else None
        if slot is None:
            return None
        try:
            session.restore(slot.snapshot)
        except SnapshotError as error:
            return f"the last game crashed and cannot be resumed: {error}"
        self.went_elsewhere = True
        return f"resumed at tick {session.tick_number} after a crash; R begins again"

    def finished(self) -> None:
        if self.saves:
            self.saves.finished()

    def obey(self, requests: list[Request], session: Session, screen: Screen) -> None:
        """Do what the player asks of the session. What cannot be done is said on the screen, and the game goes on."""
        deeds: dict[str, Callable[[Session, Screen, str], None]] = {
            "prompt": self._prompt, "restart": self._restart, "save": self._save, "save_as": self._save_as,
            "load": self._load, "next_save": self._next_save, "fork": self._fork, "branch": self._branch,
        }  # fmt: skip
        for request in requests:
            if request.kind in deeds:
                try:
                    deeds[request.kind](session, screen, request.text)
                except (PromptError, SnapshotError, UsageError) as error:
                    screen.notify(str(error))

    def _prompt(self, session: Session, screen: Screen, text: str) -> None:
        self.before_tick(session)
        self.turn(session, text, self.blend)

    def _restart(self, session: Session, screen: Screen, text: str) -> None:
        session.restart()
        self.went_elsewhere = False
        self.way.clear()
        if self.recorder:
            self.recorder.restarted(session)

    def _save(self, session: Session, screen: Screen, text: str) -> None:
        assert self.saves is not None, "a game in a window has a place for its saves"
        self.saves.save(session, self.slot, self.wall_time())
        screen.notify(f"saved as {self.slot!r} at tick {session.tick_number}", session.frame)

    def _save_as(self, session: Session, screen: Screen, name: str) -> None:
        before, self.slot = self.slot, name
        try:
            self._save(session, screen, name)
        except SnapshotError:
            self.slot = before
            raise

    def _load(self, session: Session, screen: Screen, text: str) -> None:
        assert self.saves is not None, "a game in a window has a place for its saves"
        if not self.saves.names():
            screen.notify("nothing saved yet: F5 saves")
            return
        slot = self.saves.load(session, self.slot)
        self.went_elsewhere = False
        self.way.clear()
        if self.recorder:
            self.recorder.restored(slot.snapshot, session)
        screen.notify(f"loaded tick {session.tick_number} of {self.slot!r}", slot.thumbnail)

    def _next_save(self, session: Session, screen: Screen, text: str) -> None:
        assert self.saves is not None, "a game in a window has a place for its saves"
        names = self.saves.names()
        if not names:
            screen.notify("nothing saved yet: F5 saves")
            return
        later = [name for name in names if name > self.slot]
        self.slot = later[0] if later else names[0]
        slot = self.saves.read(self.slot)
        when = time.strftime("%d %b %H:%M", time.localtime(slot.saved_at))
        screen.notify(f"{self.slot!r}: tick {slot.tick}, {when}. F9 loads, F5 overwrites it", slot.thumbnail)

    def _fork(self, session: Session, screen: Screen, text: str) -> None:
        timeline = session.timeline
        name = f"branch {len(timeline.branches) + 1}" if timeline else ""
        session.fork(name)
        screen.notify(f"{name} begins at tick {session.tick_number}; F4 goes to the others")

    def _branch(self, session: Session, screen: Screen, text: str) -> None:
        if session.timeline is None or len(session.timeline.branches) < 2:
            screen.notify("there is one branch only: F3 forks another")
            return
        names = list(session.timeline.branches)
        name = names[(names.index(session.timeline.current) + 1) % len(names)]
        session.switch(name)
        self.went_elsewhere = True
        screen.notify(f"{name}, tick {session.tick_number}", session.frame)


def beside(frame: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Two pictures side by side, the right one brought to the left one's height by repeating or dropping pixels."""
    height = frame.shape[0]
    rows = np.arange(height) * other.shape[0] // height
    columns = np.arange(round(other.shape[1] * height / other.shape[0])) * other.shape[0] // height
    return np.concatenate([frame, other[rows][:, columns.clip(max=other.shape[1] - 1)]], axis=1)

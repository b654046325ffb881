"""The past of a session: rewind, seek and branches, within a memory budget.

Every tick leaves its actions and its picture, deflated; every so often also the moment it began from (a keyframe). To
show the past costs nothing but inflating a picture; to play on from there, the session takes the keyframe before and
ticks up to it again, which gives the same bytes because a tick is a pure function. How often keyframes are kept
follows from the budget, see `Timeline.interval`; docs/runtime.md says what the alternatives cost.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field

import numpy as np

from runtime.errors import UsageError
from runtime.world import State

REWIND_SECONDS = 60  # what a budget should reach back to
STATES_AT_LEAST = 4  # that a budget must hold
FIRST_BRANCH = "main"
PICTURES_AT_MOST = 0.8  # of the budget; the rest is the keyframes', however large the pictures


@dataclass(frozen=True, eq=False)
class Moment:
    """A session at one tick, whole. Nobody writes to its arrays."""

    seed: int
    tick: int
    start: str | None
    prompt: str
    embedding: np.ndarray
    state: State
    last_action: frozenset[str]


@dataclass(eq=False)
class Step:
    """One tick that was played: from tick number `tick` to the next. before: where it began, kept at keyframes."""

    tick: int
    actions: frozenset[str]
    graph: str
    picture: bytes  # the frame, deflated
    before: Moment | None
    branches: int = 1  # that share it


@dataclass
class Branch:
    """One line of ticks without gaps; the first is a keyframe. at: the tick where the player is, or was last.

    origin: the branch and tick where it was forked; None for the first.
    """

    steps: list[Step] = field(default_factory=list)
    at: int = 0
    origin: tuple[str, int] | None = None


class Timeline:
    """Branches of steps. Knows nothing of worlds: the session ticks, the timeline remembers.

    budget: bytes for everything kept. state_bytes: of one moment. ticks: how far back it should reach.
    """

    def __init__(self, budget: int, state_bytes: int, ticks: int, frame_shape: tuple[int, ...]) -> None:
        self.budget, self.state_bytes, self.ticks = budget, state_bytes, ticks
        self.frame_shape = frame_shape
        self.clear(0)

    def clear(self, tick: int) -> None:
        """Forget everything: another game begins at this tick."""
        self.branches = {FIRST_BRANCH: Branch(at=tick)}
        self.current = FIRST_BRANCH
        self.used = 0
        self._pictures = self._picture_bytes = 0

    @property
    def branch(self) -> Branch:
        return self.branches[self.current]

    @property
    def first(self) -> int:
        """The oldest tick whose frame can be shown."""
        return self.branch.steps[0].tick + 1 if self.branch.steps else self.branch.at

    @property
    def last(self) -> int:
        """The newest tick of this branch; later than where the player is after a rewind."""
        return self.branch.steps[-1].tick + 1 if self.branch.steps else self.branch.at

    @property
    def interval(self) -> int:
        """Ticks from keyframe to keyframe, so that pictures and keyframes of `ticks` ticks fill the budget."""
        picture = self._picture_bytes / self._pictures if self._pictures else 0.0
        pictures = min(self.ticks * picture, PICTURES_AT_MOST * self.budget)
        return max(1, math.ceil(self.ticks * self.state_bytes / (0.95 * self.budget - pictures)))

    def wants_keyframe(self, prompt: str) -> bool:
        """Whether the tick to come needs its moment kept. A new prompt always does: recaching is not repeated."""
        steps = self._past()
        for back, step in enumerate(reversed(steps), 1):
            if step.before is not None:
                return back >= self.interval or step.before.prompt != prompt
        return True

    def add(self, moment: Moment | None, tick: int, actions: frozenset[str], graph: str, frame: np.ndarray) -> None:
        """Remember a tick that was just made at `tick`; a future that lay after it on this branch is given up."""
        branch = self.branch
        for step in branch.steps[tick - branch.steps[0].tick :] if branch.steps else []:
            self._let_go(step)
        if branch.steps:
            del branch.steps[tick - branch.steps[0].tick :]
        step = Step(tick, actions, graph, zlib.compress(frame.tobytes(), 1), moment)
        branch.steps.append(step)
        branch.at = tick + 1
        self.used += self._size(step)
        self._pictures += 1
        self._picture_bytes += len(step.picture)
        self._forget()

    def frame(self, tick: int) -> np.ndarray:
        """The frame that tick number `tick` ended with, uint8 [height, width, 3]."""
        picture = self.branch.steps[tick - self.first].picture
        return np.frombuffer(zlib.decompress(picture), np.uint8).reshape(self.frame_shape).copy()

    def way_to(self, tick: int) -> tuple[Moment, list[Step]]:
        """The nearest kept moment before `tick` on this branch, and the steps from there to it."""
        steps = self.branch.steps[: tick - self.branch.steps[0].tick]
        for index in range(len(steps) - 1, -1, -1):
            if (moment := steps[index].before) is not None:
                return moment, steps[index:]
        raise AssertionError("a branch begins with a keyframe")

    def fork(self, name: str) -> None:
        """Go on as a new branch from here; the branch so far stays, its future too."""
        if name in self.branches:
            raise UsageError(f"there is a branch {name!r} already; there are: {', '.join(self.branches)}")
        shared = self._past()
        for step in shared:
            step.branches += 1
        here = self.branch.at
        self.branches[name] = Branch(shared, here, (self.owner(here), here))
        self.current = name

    def owner(self, tick: int) -> str:
        """The branch that a tick of the current one was played on: before its beginning, that which it left."""
        name = self.current
        while (origin := self.branches[name].origin) is not None and tick <= origin[1]:
            name = origin[0]
        return name

    def switch(self, name: str) -> int:
        """Make another branch the current one; the tick where the player left it."""
        if name not in self.branches:
            raise UsageError(f"there is no branch {name!r}; there are: {', '.join(self.branches)}")
        self.current = name
        return self.branch.at

    def _past(self) -> list[Step]:
        steps = self.branch.steps
        return steps[: self.branch.at - steps[0].tick] if steps else []

    def _size(self, step: Step) -> int:
        return len(step.picture) + (self.state_bytes if step.before is not None else 0)

    def _let_go(self, step: Step) -> None:
        step.branches -= 1
        if not step.branches:
            self.used -= self._size(step)

    def _forget(self) -> None:
        """Drop the oldest ticks of the longest branches, whole keyframe intervals, until the budget holds."""
        while self.used > self.budget:
            longest = sorted(self.branches.values(), key=lambda branch: -len(branch.steps))
            if not any(self._shorten(branch) for branch in longest):
                return  # the least that can be kept

    def _shorten(self, branch: Branch) -> bool:
        keyframes = (index for index, step in enumerate(branch.steps) if index and step.before is not None)
        second = next(keyframes, None)
        if second is None:
            return False
        for step in branch.steps[:second]:
            self._let_go(step)
        del branch.steps[:second]
        branch.at = max(branch.at, branch.steps[0].tick + 1)
        return True

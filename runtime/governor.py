"""The governor: which of a world's graphs makes the next frame, from what each costs and how much time is left.

    tick       the steady one. Frames in flight, if the world has any, are told the newest action.
    reprime    drops the frames in flight and makes them again: the key shows in this very frame.
    tick_fast  fewer denoising steps.

The choice is a pure function; the replay writes it down, so that a game is the same again on a slower machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from runtime.errors import UsageError
from runtime.session import Session

ANSWERS = ("auto", "rollback", "late", "off")
POLICIES = ("slow", "skip", "degrade")
REMEMBERED = 32  # ticks; the slowest of them is what the next is taken to cost
SKIPPED_AT_MOST = 4  # frames in a row that are not shown, under the policy `skip`


@dataclass(frozen=True)
class Wishes:
    """What the player chose.

    answer: how a new action meets frames in flight. `off`: it waits until its own frame leaves. `late`: it is told to
    the frames as they are. `rollback`: they are made again, whatever it costs. `auto`: as rollback if there is time.
    policy: what a machine that is too slow gives up. `slow`: the world's speed. `skip`: showing every frame.
    `degrade`: denoising steps.
    """

    answer: str = "auto"
    policy: str = "slow"

    def __post_init__(self) -> None:
        if self.answer not in ANSWERS:
            raise UsageError(f"answer must be one of {', '.join(ANSWERS)}: got {self.answer!r}")
        if self.policy not in POLICIES:
            raise UsageError(f"policy must be one of {', '.join(POLICIES)}: got {self.policy!r}")


def choose(costs: Mapping[str, float], left: float, changed: bool, wishes: Wishes) -> str:
    """The best graph that meets the deadline, or the quickest allowed one if none does.

    costs: seconds, of the graphs that the world has; `tick` is always there. left: seconds until the frame is due.
    changed: whether the action is another than the one that the frames in flight were made for.
    """
    return choose_for_all(costs, left, [changed], wishes)[0]


def choose_for_all(costs: Mapping[str, float], left: float, changed: Sequence[bool], wishes: Wishes) -> tuple[str, ...]:
    """`choose` for players in one batch: a graph for each.

    One call of a graph makes the frames of all who need it, and costs the same for one as for all: costs are of such a
    call. Where there is no time for two, those who hold their keys ride along when others' frames are made again.
    """

    def graphs(new: str, held: str) -> tuple[str, ...]:
        return tuple(new if is_new else held for is_new in changed)

    def seconds(plan: tuple[str, ...]) -> float:
        return sum(costs[graph] for graph in dict.fromkeys(plan))

    again = any(changed) and "reprime" in costs and wishes.answer in ("rollback", "auto")
    forced = again and wishes.answer == "rollback"
    plans = [graphs("reprime", "tick"), graphs("reprime", "reprime")] if again else []
    if not forced:
        plans.append(graphs("tick", "tick"))
    if wishes.policy == "degrade" and "tick_fast" in costs:
        plans.append(graphs("reprime" if forced else "tick_fast", "tick_fast"))
    return next((plan for plan in plans if seconds(plan) <= left), min(plans, key=seconds))


def may_choose(graph: str, wishes: Wishes) -> bool:
    return (graph != "reprime" or wishes.answer in ("rollback", "auto")) and (
        graph != "tick_fast" or wishes.policy == "degrade"
    )


class Governor:
    """Remembers what graphs have cost, and chooses."""

    def __init__(self, graphs: Collection[str] = ("tick",), wishes: Wishes | None = None) -> None:
        self.wishes = wishes or Wishes()
        self.graphs = tuple(graph for graph in graphs if may_choose(graph, self.wishes))
        self._recent: deque[tuple[str, float]] = deque(maxlen=REMEMBERED)
        self._least: dict[str, float] = {}

    def measured(self, graph: str, seconds: float) -> None:
        self._recent.append((graph, seconds))
        self._least[graph] = min(seconds, self._least.get(graph, seconds))

    @property
    def costs(self) -> dict[str, float]:
        """Seconds that a tick of each graph is expected to cost: the most it has cost lately.

        A graph that was not used lately is expected to be slowed down as much as those that were, so that a machine
        that is free again is noticed without missing deadlines to try. One that was never measured costs nothing.
        """
        lately: dict[str, float] = {}
        for graph, seconds in self._recent:
            lately[graph] = max(seconds, lately.get(graph, 0.0))
        load = max((lately[graph] / self._least[graph] for graph in lately if self._least[graph]), default=1.0)
        return {graph: lately.get(graph, self._least.get(graph, 0.0) * load) for graph in self.graphs}

    def choose(self, left: float, changed: bool) -> str:
        return choose(self.costs, left, changed, self.wishes)

    def rehearse(self, session: Session, now: Callable[[], float]) -> None:
        """Measure every graph before the game, so that none is chosen blindly; the session stays as it is."""
        for graph in self.graphs:
            session.rehearse(graph)  # some are compiled the first time
            for _ in range(3):
                begun = now()
                session.rehearse(graph)
                self.measured(graph, now() - begun)

    def lead(self, period: float) -> float:
        """Seconds before the deadline at which input should be read: as late as the dearest graph in use allows."""
        used = [cost for graph, cost in self.costs.items() if graph != "tick_fast"]
        return min(max(used, default=0.0) * 1.2 + 0.001, 0.9 * period)


class Pipe:
    """Actions on their way through frames in flight: each comes out `length` ticks after it went in (answer `off`)."""

    def __init__(self, length: int) -> None:
        self._inside = deque([frozenset[str]()] * length)

    def __call__(self, actions: frozenset[str]) -> frozenset[str]:
        self._inside.append(actions)
        return self._inside.popleft()

"""A player for the Doom rooms who sees the map: hunts, wanders, collects, scans, idles and fumbles, each for a while.

What a world can learn is what the recording holds, so this aims at variety, not at a score: every button and every
pair of them, both ways, near walls and far from them, with monsters and without (docs/doom.md has the shares).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
Buttons = frozenset[str]
Look = Callable[[], "View"]
Behaviour = Callable[[Look, np.random.Generator], Iterator[Buttons]]  # endless

NOTHING: Buttons = frozenset()
FORWARD: Buttons = frozenset({"forward"})
ATTACK: Buttons = frozenset({"attack"})
TURNS: tuple[Buttons, Buttons] = (frozenset({"turn_left"}), frozenset({"turn_right"}))


@dataclass(frozen=True)
class View:
    """Where everything is, in map units; angles are degrees, anticlockwise."""

    x: float
    y: float
    angle: float
    walls: NDArray[np.float64]  # [walls, 4]: x1, y1, x2, y2
    monsters: tuple[Point, ...]
    pickups: tuple[Point, ...]

    def bearing(self, place: Point) -> float:
        """How far to turn left to face a place: -180 to 180."""
        there = np.degrees(np.arctan2(place[1] - self.y, place[0] - self.x))
        return float((there - self.angle + 180) % 360 - 180)

    def distance(self, place: Point) -> float:
        return float(np.hypot(place[0] - self.x, place[1] - self.y))

    def clearance(self, turn: float = 0.0) -> float:
        """How far the wall is in the direction that a left turn by so many degrees would face."""
        along = np.radians(self.angle + turn)
        dx, dy = np.cos(along), np.sin(along)
        x1, y1, x2, y2 = self.walls.T
        across = dx * (y2 - y1) - dy * (x2 - x1)
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = ((x1 - self.x) * (y2 - y1) - (y1 - self.y) * (x2 - x1)) / across
            part = ((x1 - self.x) * dy - (y1 - self.y) * dx) / across
        hit = (reach > 0) & (part >= 0) & (part <= 1)
        return float(reach[hit].min(initial=np.inf))

    def visible_monsters(self, field_of_view: float) -> list[Point]:
        """Those in the picture. Only in a room without corners to hide behind is that all there is to it."""
        return [place for place in self.monsters if abs(self.bearing(place)) < field_of_view / 2]


class Driver:
    """Call it once a tick for the buttons to hold; made anew for each episode.

    The player's intention changes now and then, and once in a while one button sticks or fails for some ticks.
    """

    def __init__(self, look: Look, rng: np.random.Generator, buttons: tuple[str, ...]) -> None:
        self._rng = rng
        self._buttons = buttons
        self._intentions = intentions(look, rng)
        self._slip_ticks = 0
        self._slipping = buttons[0]

    def __call__(self) -> NDArray[np.bool_]:
        """bool [buttons], in the order that the constructor was given."""
        held = self._slip(next(self._intentions))
        return np.array([name in held for name in self._buttons])

    def _slip(self, held: Buttons) -> Buttons:
        """The buttons as they are pressed: one of them may be the opposite of what was meant."""
        if self._slip_ticks == 0 and self._rng.random() < 1 / 40:
            self._slip_ticks = int(self._rng.integers(2, 12))
            self._slipping = str(self._rng.choice(self._buttons))
        if self._slip_ticks == 0:
            return held
        self._slip_ticks -= 1
        return held ^ {self._slipping}


def intentions(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """One behaviour after another, each held for its own number of ticks."""
    names = list(BEHAVIOURS)
    while True:
        view = look()
        weights = np.array([BEHAVIOURS[name].weight(view) for name in names])
        choice = BEHAVIOURS[str(rng.choice(names, p=weights / weights.sum()))]
        buttons = choice.run(look, rng)
        for _ in range(rng.integers(*choice.ticks)):
            yield next(buttons)


def hunt(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Turn to the nearest monster and shoot; look around when there is none."""
    turn = TURNS[rng.integers(2)]
    while True:
        view = look()
        if not view.monsters:
            yield turn
            continue
        target = min(view.monsters, key=view.distance)
        yield ATTACK if on_target(view, target) else turn_to(view, target)


def charge(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Run at a monster, shooting only at close quarters: the way to see one large."""
    near = rng.uniform(60, 200)
    for held in hunt(look, rng):
        view = look()
        far = bool(view.monsters) and min(map(view.distance, view.monsters)) > near
        yield (held - ATTACK) | FORWARD if far else held


def watch(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Keep a monster in the picture without shooting, somewhere off the middle; walk some of the time."""
    turn, slack = TURNS[rng.integers(2)], rng.uniform(8, 35)
    step = FORWARD if rng.random() < 0.4 else NOTHING
    while True:
        view = look()
        if not view.monsters:
            yield turn
            continue
        target = min(view.monsters, key=view.distance)
        follow = turn_to(view, target) if abs(view.bearing(target)) > slack else NOTHING
        yield follow | (step if view.clearance() > 80 else NOTHING)


def collect(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Walk to one of the nearest pickups, then to another."""
    strolling = wander(look, rng)
    while True:
        near = sorted(look().pickups, key=look().distance)[:4]
        if not near:
            yield next(strolling)
            continue
        goal = near[rng.integers(len(near))]
        while goal in look().pickups:
            view = look()
            yield turn_to(view, goal) | (FORWARD if abs(view.bearing(goal)) < 40 else NOTHING)


def wander(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Walk, bending now and then, and turn to the freer side before a wall."""
    while True:
        margin = rng.uniform(70, 200)
        away = TURNS[0] if look().clearance(30) > look().clearance(-30) else TURNS[1]
        while blocked(look(), margin):
            yield away
        bend = (NOTHING, NOTHING, *TURNS)[rng.integers(4)]
        for _ in range(rng.integers(2, 12)):
            if blocked(look(), margin):
                break
            yield FORWARD | bend


def scan(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Hold one turn, sometimes walking a circle or shooting all around."""
    turn = TURNS[rng.integers(2)]
    extra = (NOTHING, NOTHING, NOTHING, FORWARD, ATTACK)[rng.integers(5)]
    while True:
        yield turn | (extra - FORWARD if look().clearance() < 80 else extra)


def peek(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Look left and right in turn, a few ticks each, with pauses."""
    side = int(rng.integers(2))
    while True:
        for _ in range(rng.integers(1, 14)):
            yield TURNS[side]
        for _ in range(rng.integers(0, 8)):
            yield NOTHING
        side = 1 - side


def shoot(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Fire at nothing: single shots and bursts, with pauses."""
    while True:
        for _ in range(rng.integers(1, 16)):
            yield ATTACK
        for _ in range(rng.integers(1, 10)):
            yield NOTHING


def idle(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Stand still."""
    while True:
        yield NOTHING


def fumble(look: Look, rng: np.random.Generator) -> Iterator[Buttons]:
    """Any buttons at once, each handful held for some ticks; seldom on into a wall."""
    likely = {"turn_left": 0.35, "turn_right": 0.35, "forward": 0.5, "attack": 0.3}
    while True:
        held = frozenset(name for name, chance in likely.items() if rng.random() < chance)
        if look().clearance() < 70 and rng.random() < 0.8:
            held -= FORWARD
        for _ in range(rng.integers(1, 12)):
            yield held


@dataclass(frozen=True)
class Habit:
    """A behaviour, how long it lasts, and how often it is chosen: relative to the others, by what is about."""

    run: Behaviour
    ticks: tuple[int, int]  # shortest, and one more than the longest
    weight_with_monsters: float
    weight_with_pickups: float

    def weight(self, view: View) -> float:
        return self.weight_with_pickups if view.pickups else self.weight_with_monsters


BEHAVIOURS: dict[str, Habit] = {
    "hunt": Habit(hunt, (25, 90), 4.0, 0.0),
    "charge": Habit(charge, (25, 70), 2.5, 0.0),
    "watch": Habit(watch, (20, 70), 2.5, 0.0),
    "collect": Habit(collect, (40, 120), 0.0, 6.0),
    "wander": Habit(wander, (30, 90), 4.0, 3.0),
    "scan": Habit(scan, (8, 60), 2.5, 2.5),
    "peek": Habit(peek, (15, 50), 1.5, 1.5),
    "shoot": Habit(shoot, (10, 40), 1.5, 0.5),
    "idle": Habit(idle, (5, 25), 1.5, 1.5),
    "fumble": Habit(fumble, (15, 50), 2.0, 2.0),
}


def turn_to(view: View, place: Point) -> Buttons:
    """The turn that brings a place nearer to the middle, or none when one more would overshoot."""
    bearing = view.bearing(place)
    if abs(bearing) < 3.0:
        return NOTHING
    return TURNS[0] if bearing > 0 else TURNS[1]


def on_target(view: View, place: Point) -> bool:
    """Whether a shot would hit something as wide as a monster."""
    half_width = np.degrees(np.arctan2(16.0, view.distance(place)))
    return abs(view.bearing(place)) < max(half_width, 3.0)


def blocked(view: View, margin: float) -> bool:
    """Whether a wall is nearer than the margin, ahead or a little to either side."""
    return min(view.clearance(turn) for turn in (-20.0, 0.0, 20.0)) < margin

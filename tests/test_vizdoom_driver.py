"""What the Doom driver promises, in a square room without an engine."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.train.envs.vizdoom_driver import BEHAVIOURS, Driver, View

BUTTONS = ("turn_left", "turn_right", "forward", "attack")
WALLS = np.array([[0, 0, 1000, 0], [1000, 0, 1000, 1000], [1000, 1000, 0, 1000], [0, 1000, 0, 0]], np.float64)


class Room:
    """A 1000 x 1000 room in which turning and walking work, and nothing else happens."""

    def __init__(
        self, monsters: tuple[tuple[float, float], ...] = (), pickups: tuple[tuple[float, float], ...] = ()
    ) -> None:
        self.x, self.y, self.angle = 500.0, 500.0, 0.0
        self.monsters, self.pickups = monsters, pickups

    def view(self) -> View:
        return View(self.x, self.y, self.angle, WALLS, self.monsters, self.pickups)

    def live(self, held: np.ndarray) -> None:
        left, right, forward, _ = held
        self.angle = (self.angle + 7.0 * (int(left) - int(right))) % 360
        reach = 16.0 * int(forward)
        self.x = float(np.clip(self.x + reach * np.cos(np.radians(self.angle)), 16, 984))
        self.y = float(np.clip(self.y + reach * np.sin(np.radians(self.angle)), 16, 984))


def drive(room: Room, seed: int, ticks: int) -> np.ndarray:
    """What a driver pressed: bool [ticks, buttons]."""
    act = Driver(room.view, np.random.default_rng(seed), BUTTONS)
    pressed = []
    for _ in range(ticks):
        pressed.append(act())
        room.live(pressed[-1])
    return np.array(pressed)


@pytest.mark.parametrize(
    "angle, turn, distance", [(0, 0, 500), (90, 0, 500), (0, 45, 500 * 2**0.5), (0, 90, 500), (350, 10, 500)]
)
def test_clearance_is_the_way_to_the_wall(angle: float, turn: float, distance: float) -> None:
    assert View(500, 500, angle, WALLS, (), ()).clearance(turn) == pytest.approx(distance)


@pytest.mark.parametrize("angle, bearing", [(0, 90), (90, 0), (180, -90), (350, 100), (270.0, -180)])
def test_bearing_is_the_shortest_left_turn(angle: float, bearing: float) -> None:
    assert View(500, 500, angle, WALLS, (), ()).bearing((500, 900)) == pytest.approx(bearing)


def test_only_what_is_in_front_is_visible() -> None:
    ahead, aside, behind = (900.0, 500.0), (500.0, 900.0), (100.0, 500.0)
    view = View(500, 500, 0, WALLS, (ahead, aside, behind), ())
    assert view.visible_monsters(90) == [ahead]


def test_every_button_and_every_pause_is_frequent_and_both_turns_are_alike() -> None:
    pressed = np.concatenate([drive(Room(monsters=((900.0, 300.0),)), seed, 400) for seed in range(20)])
    share = pressed.mean(0)
    assert (share > 0.08).all()
    assert 0.7 < share[0] / share[1] < 1.4
    assert 0.05 < (~pressed.any(1)).mean() < 0.4


def test_the_same_seed_drives_the_same_way() -> None:
    first, again, other = (drive(Room(monsters=((900.0, 300.0),)), seed, 200) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_walk_spends_little_time_at_the_wall() -> None:
    at_the_wall = []
    for seed in range(10):
        room = Room()
        act = BEHAVIOURS["wander"].run(room.view, np.random.default_rng(seed))
        for _ in range(200):
            held = next(act)
            room.live(np.array([name in held for name in BUTTONS]))
            at_the_wall.append(room.view().clearance() < 40)
    assert np.mean(at_the_wall) < 0.05


def test_a_hunter_shoots_at_the_monster_and_a_collector_reaches_the_pickup() -> None:
    hunted = Room(monsters=((200.0, 800.0),))
    hunt = BEHAVIOURS["hunt"].run(hunted.view, np.random.default_rng(0))
    for _ in range(60):
        held = next(hunt)
        hunted.live(np.array([name in held for name in BUTTONS]))
    assert held == {"attack"}
    assert abs(hunted.view().bearing((200.0, 800.0))) < 5

    rich = Room(pickups=((200.0, 800.0),))
    collect = BEHAVIOURS["collect"].run(rich.view, np.random.default_rng(0))
    nearest = np.inf
    for _ in range(100):
        held = next(collect)
        rich.live(np.array([name in held for name in BUTTONS]))
        nearest = min(nearest, rich.view().distance((200.0, 800.0)))
    assert nearest < 30

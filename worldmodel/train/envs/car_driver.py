"""The driver that fills the car's data set: gentle, on the road, and now and then doing everything a player might.

It strings together short pieces of behaviour ("moves"); after each it finds back to the road by pure pursuit
(Coulter 1992, CMU-RI-TR-92-01) over the track's centre line. A prototype showed that the policy decides what a world
learns: skids and one-sided driving teach a car that turns one way only. And keys that always answer the road tell where
it goes: a world that has seen nothing else puts the road wherever it is steered. So some of the moves do not look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from worldmodel.train.envs import Keys

if TYPE_CHECKING:
    from worldmodel.train.envs.car_racing import CarRacing

_WHEELBASE = 3.24  # units between the axles
_SPACING = 3.5  # units between track points
_GRIP = 110.0  # sideways acceleration in units/s² that the driver allows itself in a bend (tyres hold about 200)


class CarDriver:
    """Call it once a tick for the keys [left, right, gas, brake].

    open_loop: whether the latest keys were pressed without regard to the road.
    """

    open_loop = False

    def __init__(self, car: CarRacing, rng: np.random.Generator) -> None:
        self._car = car
        self._rng = rng
        self._cruise = float(rng.uniform(8, 45))
        self._patience = int(rng.integers(2, 5))  # ticks that a steering key stays as it is
        self._steering = 0  # -1 left, 0 none, 1 right
        self._since = 0
        self._way = 0
        self._driven: list[tuple[bool, bool, bool, bool]] = []  # keys that followed the road
        self._moves = self._all_moves()

    def __call__(self) -> Keys:
        left, right, gas, brake = next(self._moves)
        return np.array([left, right, gas, brake], bool)

    def _all_moves(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        rng = self._rng
        self._look_which_way()
        if self._speed() < 1 and rng.random() < 0.7:
            yield from self._hold(_NOTHING, int(rng.integers(5, 60)))
        while True:
            yield from self._follow(int(rng.integers(40, 120)), offset=float(rng.uniform(-3, 3)))
            move = rng.choice(list(_MOVES), p=list(_MOVES.values()))
            yield from getattr(self, f"_{move}")()
            self.open_loop = False
            if rng.random() < 0.3:
                self._cruise = float(rng.uniform(8, 45))

    # -- moves ------------------------------------------------------------------------------------------------------

    def _follow(
        self, ticks: int, offset: float = 0.0, sway: float = 0.0, cruise: float | None = None
    ) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Drive along the track `offset` units right of its centre, swaying by `sway` units."""
        period = self._rng.uniform(25, 60)
        for tick in range(ticks):
            aim = offset + sway * math.sin(2 * math.pi * tick / period)
            steer, speed_limit = self._pursue(aim)
            self._driven.append(self._keys(steer, min(speed_limit, cruise or self._cruise)))
            yield self._driven[-1]

    def _slalom(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        yield from self._follow(int(self._rng.integers(60, 140)), sway=float(self._rng.uniform(3, 6)))

    def _excursion(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Leave the road to one side for a while; the next move brings the car back."""
        offset = float(self._rng.choice([-1, 1]) * self._rng.uniform(9, 18))
        yield from self._follow(int(self._rng.integers(25, 60)), offset=offset)

    def _lose_road(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Leave the road until none of it is in sight and go about out there; the next move finds it again.

        What a world is never shown it cannot do: without this a road once lost stayed lost.
        """
        for _ in range(150):
            if not self._car.road_in_view():
                break
            yield self._keys(self._away_from_road(), 26.0)
        about = float(self._rng.choice([-0.2, 0.0, 0.2]))
        for _ in range(int(self._rng.integers(5, 25))):
            yield self._keys(about, 16.0)

    def _eyes_shut(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Gas and nothing else, keys held at random, or those that followed some other stretch of road."""
        self.open_loop = True
        kind, ticks = self._rng.random(), int(self._rng.integers(30, 90))
        if kind < 0.35:
            yield from self._hold((False, False, True, False), ticks)
        elif kind < 0.65 or len(self._driven) < ticks:
            while ticks > 0:
                left, right, gas = self._rng.random(3) < (0.35, 0.35, 0.6)
                held = min(ticks, int(self._rng.integers(8, 45)))
                yield from self._hold((left, right, gas, False), held)
                ticks -= held
        else:
            begin = int(self._rng.integers(len(self._driven) - ticks + 1))
            mirrored = self._rng.random() < 0.5
            for left, right, gas, brake in self._driven[begin : begin + ticks]:
                yield (right, left, gas, brake) if mirrored else (left, right, gas, brake)

    def _random_keys(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        self.open_loop = True
        for _ in range(int(self._rng.integers(1, 5))):
            left, right, gas, brake = self._rng.random(4) < (0.35, 0.35, 0.5, 0.12)
            yield from self._hold((left, right, gas, brake), int(self._rng.integers(3, 16)))

    def _long_turn(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        self.open_loop = True
        left = bool(self._rng.random() < 0.5)
        gas = bool(self._rng.random() < 0.6)
        yield from self._hold((left, not left, gas, False), int(self._rng.integers(20, 45)))

    def _u_turn(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        left = bool(self._rng.random() < 0.5)
        start = self._car.pose()[2]
        for _ in range(120):
            if abs(self._car.pose()[2] - start) > 2.4:
                break
            yield left, not left, self._speed() < 16, self._speed() > 22
        self._look_which_way()

    def _coast(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Feet off, steering on; or, half of the time, hands off too, often until long after the car has come to rest.

        What a world has been shown for two seconds it does not know of the sixth: cars that were let go crept on.
        """
        steering = self._rng.random() < 0.5
        self.open_loop = not steering
        for _ in range(int(self._rng.integers(15, 150 if steering else 250))):
            left, right, *_ = self._keys(self._pursue(0.0)[0], 0.0) if steering else _NOTHING
            yield left, right, False, False

    def _stop(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Brake or roll to rest, wait, perhaps turning the wheels, and go on."""
        brake = bool(self._rng.random() < 0.5)
        steering = brake or bool(self._rng.random() < 0.5)
        self.open_loop = not steering
        for _ in range(80 if brake else 200):
            if self._speed() < 0.5:
                break
            left, right, *_ = self._keys(self._pursue(0.0)[0], 0.0) if steering else _NOTHING
            yield left, right, False, brake
        yield from self._hold((False, False, False, brake), int(self._rng.integers(1, 12)))
        left, right = self._rng.random(2) < 0.25
        yield from self._hold((left, right, False, False), int(self._rng.integers(5, 100)))

    def _full_gas(self) -> Iterator[tuple[bool, bool, bool, bool]]:
        """Gas held through, steering along the road."""
        for _ in range(int(self._rng.integers(25, 70))):
            left, right, *_ = self._keys(self._pursue(0.0)[0], 60.0)
            yield left, right, True, False

    def _hold(self, keys: tuple[bool, bool, bool, bool], ticks: int) -> Iterator[tuple[bool, bool, bool, bool]]:
        for _ in range(ticks):
            yield keys

    # -- seeing and steering ----------------------------------------------------------------------------------------

    def _speed(self) -> float:
        *_, forward, sideways = self._car.pose()
        return math.hypot(forward, sideways)

    def _away_from_road(self) -> float:
        """Steering that turns the road's nearest point behind the car."""
        right, ahead = self._car.track_from_car()
        nearest = int(np.argmin(np.hypot(right, ahead)))
        bearing = math.atan2(right[nearest], ahead[nearest])
        return 0.0 if abs(bearing) > 2.6 else math.copysign(0.3, -bearing)

    def _look_which_way(self) -> None:
        yaw, beta = self._car.pose()[2], self._car.track[self._car.nearest(), 2]
        self._way = 1 if math.cos(yaw - beta) >= 0 else -1

    def _pursue(self, offset: float) -> tuple[float, float]:
        """Steering (right positive) towards the track ahead, and the speed that the road allows."""
        car, way = self._car, self._way
        x, y, yaw, forward, _ = car.pose()
        at, points = car.nearest(), len(car.track)
        away = math.hypot(car.track[at, 0] - x, car.track[at, 1] - y)
        reach = 7 + 0.3 * max(forward, 0.0) + 0.4 * max(away - 8, 0.0)
        aim_x, aim_y, beta = car.track[(at + way * round(reach / _SPACING)) % points]
        aim_x, aim_y = aim_x + way * offset * math.cos(beta), aim_y + way * offset * math.sin(beta)
        right = (aim_x - x) * math.cos(yaw) + (aim_y - y) * math.sin(yaw)
        ahead = -(aim_x - x) * math.sin(yaw) + (aim_y - y) * math.cos(yaw)
        bearing = math.atan2(right, ahead)
        if abs(bearing) > 1.2:  # the road is behind: turn about, by the side that it is on
            return math.copysign(1.0, bearing), 20.0
        steer = math.atan(_WHEELBASE * 2 * math.sin(bearing) / math.hypot(right, ahead))
        return steer, self._speed_limit(at, forward, away)

    def _speed_limit(self, at: int, forward: float, away: float) -> float:
        steps = self._way * np.arange(0, 4 + int(max(forward, 0.0) / 4))
        betas = np.unwrap(self._car.track[(at + steps) % len(self._car.track), 2])
        bend = float(np.max(np.abs(betas[2:] - betas[:-2]))) / (2 * _SPACING)
        limit = math.sqrt(_GRIP / max(bend, 0.01))
        return min(limit, 26.0) if away > 6 else limit

    def _keys(self, steer: float, speed: float) -> tuple[bool, bool, bool, bool]:
        """Keys that bring steering and speed about; a steering key once changed stays so for some ticks."""
        self._since += 1
        if self._since >= self._patience:
            lead = steer - self._car.steer
            wanted = 0
            if abs(steer) > 0.03:
                wanted = int(math.copysign(1, steer)) if lead * steer > 0 else 0
            if wanted != self._steering:
                self._steering, self._since = wanted, 0
        _, _, _, forward, sideways = self._car.pose()
        skidding = abs(sideways) > 0.15 * abs(forward) and abs(forward) > 8
        gas = forward < speed and not skidding
        return self._steering == -1, self._steering == 1, gas, forward > speed + 5


_NOTHING = (False, False, False, False)
_MOVES = {
    "eyes_shut": 0.32,
    "slalom": 0.10,
    "excursion": 0.04,
    "lose_road": 0.06,
    "random_keys": 0.12,
    "long_turn": 0.04,
    "u_turn": 0.04,
    "coast": 0.12,
    "stop": 0.12,
    "full_gas": 0.04,
}

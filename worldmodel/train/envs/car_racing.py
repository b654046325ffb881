"""Gymnasium's CarRacing-v3 as a game: its own physics, our own antialiased picture, colours that have names.

One tick is two of the environment's 1/50 s physics steps, so 25 ticks a second. The picture is the environment's scene
and camera (turned with the car, car a quarter from the bottom, 50 units high) drawn square, large and averaged down,
without score, indicators or the intro's zoom. The grass's squares and the three shades of the road's tiles are the
environment's, with more contrast, so that speed can be seen. Left out on purpose: the wheels' turning marker, which
aliases at 25 Hz, and skid marks, which the environment's own observation leaves out too. The physics are untouched.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.train.envs import BEGUN, Frame, Keys, Outcome, captions
from worldmodel.train.envs.car_driver import CarDriver
from worldmodel.train.envs.car_wear import Wear


def _import_environment() -> tuple[types.ModuleType, types.ModuleType]:
    """Import car_dynamics and car_racing, with an empty pygame where there is none: only their drawing needs it."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on standard output, which is for results
    empty = {} if importlib.util.find_spec("pygame") else {name: types.ModuleType(name) for name in _PYGAME}
    sys.modules.update(empty)
    try:
        from gymnasium.envs.box2d import car_dynamics, car_racing
    finally:
        for name in empty:
            del sys.modules[name]
    return car_dynamics, car_racing


_PYGAME = ("pygame", "pygame.gfxdraw")
car_dynamics, car_racing = _import_environment()

VIEW_UNITS = 50.0  # height and width of what the frame shows, in the environment's length units
CAR_FROM_TOP = 0.75  # where the car stands in the frame
CAR_HALF = 1.4, 2.6  # half of its width and length with its wheels, units
SUPERSAMPLE = 4
_STRIPE = 8  # levels between neighbouring shades of the road's tiles, of which the environment has three
_SUBPIXEL_BITS = 4  # cv2 draws at 1/16 pixel
_REACH = VIEW_UNITS * math.hypot(0.5, CAR_FROM_TOP) + 1.2 * car_racing.TRACK_WIDTH  # car to a tile that may be seen

_SIDES, _FRONT, _BACK = 28.0, 40.0, 15.0  # units within which the middle of a road lies that the picture shows some of
_SCENE = (50, 150)  # ticks until the colours change
_TWIN_SCENE = (15, 45)  # the same where other colours are shown: clips that teach a change are short, names are many
_STEPS_PER_TICK = 2
_LOCK = 0.32  # steering of a held key: turns within the track's tightest bend, does not throw the car at 45 units/s
_STEER_ON, _STEER_OFF = 0.08, 0.12  # change per tick while a key is held, and back to straight
_GAS, _BRAKE, _DRAG = 0.16, 0.05, 0.022  # drag is a touch of brake: the environment has none, a car left alone stops


class _Physics(car_racing.CarRacing):  # type: ignore[name-defined]
    """The environment without its pictures, which cost more than all the rest."""

    def _render(self, mode: str) -> None:
        return None


class CarRacing:
    """CarRacing-v3 with the keys left, right, gas and brake."""

    env_id = "CarRacing-v3"
    tick_hz = car_racing.FPS / _STEPS_PER_TICK
    actions = ("left", "right", "gas", "brake")
    keys: ClassVar = {
        "left": ["left", "a"],
        "right": ["right", "d"],
        "gas": ["up", "w"],
        "brake": ["down", "s", "space"],
    }
    mirror: ClassVar = [("left", "right")]
    facts = (
        "on_road", "x", "y", "yaw", "speed", "yaw_rate", "slip", "steer", "curvature", "off_centre", "in_view",
        "open_loop",
    )  # fmt: skip

    def __init__(
        self,
        size: int = 128,
        split: captions.Split = "train",
        recolour: bool = True,
        palette: int = 0,
        worn: bool = False,
    ) -> None:
        """palette: another number shows the same drives in other colours, so that a change of colours can be taught.

        worn: show the same drives along a worn road (car_wear.py), so that mending it can be.
        """
        cv2.setNumThreads(1)
        self.height = self.width = size
        self._split = split
        self._recolour = recolour
        self._palette, self._worn = palette, worn
        self._wear: Wear | None = None
        self._driver: CarDriver | None = None
        self._env = _Physics(lap_complete_percent=2.0)
        self._canvas = np.empty((size * SUPERSAMPLE, size * SUPERSAMPLE, 3), np.uint8)
        self._scale = size * SUPERSAMPLE / VIEW_UNITS
        self._hull = [self._in_car_frame(np.array(poly) * car_dynamics.SIZE) for poly in _HULL]

    # -- the game ---------------------------------------------------------------------------------------------------

    def reset(self, seed: int) -> Frame:
        """A new track, a place on it facing either way, at rest (one in three) or rolling."""
        self._rng = np.random.default_rng([seed, self._split == "test"])
        self._env.reset(seed=int(self._rng.integers(2**31)))
        self._read_track()
        if self._worn:
            self._wear_out(Wear(np.random.default_rng([seed, 1]), len(self.track)))
        at, way = int(self._rng.integers(len(self.track))), int(self._rng.choice([-1, 1]))
        speed = 0.0 if self._rng.random() < 1 / 3 else float(self._rng.uniform(4, 32))
        self.place(at, way, speed, offset=float(self._rng.uniform(-3, 3)), turned=float(self._rng.normal(0, 0.08)))
        self._colours = (
            np.random.default_rng([seed, self._split == "test", self._palette]) if self._palette else self._rng
        )
        self.paint(*captions.scene_colours(self._colours, self._split))
        self._outcome, self._driver = BEGUN, None
        return self.look()

    def place(self, at: int, way: int, speed: float, offset: float = 0.0, turned: float = 0.0) -> None:
        """Put a new car on track point `at`, driving the track's way (1) or against it (-1), `offset` to its right."""
        x, y, beta = self.track[at]
        angle = beta + turned + (0 if way == 1 else math.pi)
        forward = np.array([-math.sin(angle), math.cos(angle)])
        x, y = x + way * offset * math.cos(beta), y + way * offset * math.sin(beta)
        self._env.car.destroy()
        self._env.car = car_dynamics.Car(self._env.world, angle, x, y)
        for body in [self._env.car.hull, *self._env.car.wheels]:
            body.linearVelocity = tuple(float(part) for part in speed * forward)
        for wheel in self._env.car.wheels:
            wheel.omega = speed / wheel.wheel_rad
        self._steer = 0.0
        self._nearest = at
        self._env.step(None)  # lets the wheels touch their tiles, as the environment's own reset does

    def step(self, action: Keys) -> tuple[Frame, bool]:
        """One tick. The episode is over only where the playfield ends."""
        controls = self._controls(action)
        reward = sum(self._env.step(controls)[1] for _ in range(_STEPS_PER_TICK))
        if self._recolour:
            self._recolour_in -= 1
            if self._recolour_in <= 0:
                self.paint(*captions.scene_colours(self._colours, self._split))
        x, y = self._env.car.hull.position
        self._outcome = Outcome(float(reward), max(abs(x), abs(y)) > car_racing.PLAYFIELD)
        return self.look(), self._outcome.terminated

    def outcome(self) -> Outcome:
        """The environment's own reward: 1000 for all tiles of the track, -0.1 for each of a tick's two steps."""
        return self._outcome

    def motion(self) -> None:
        """The facts tell it, see motion.py: the picture is the ground seen from above."""

    def _controls(self, action: Keys) -> NDArray[np.float64]:
        """Keys to [steering, gas, brake]. A held steering key takes four ticks to full lock; nothing else remembers."""
        left, right, gas, brake = (bool(key) for key in action)
        target = _LOCK * (right - left)
        change = _STEER_ON if target * (target - self._steer) > 0 else _STEER_OFF
        self._steer += float(np.clip(target - self._steer, -change, change))
        return np.array([self._steer, _GAS * gas, _BRAKE if brake else _DRAG])

    def policy(self, rng: np.random.Generator) -> Callable[[], Keys]:
        """The gentle driver, see car_driver.py."""
        self._driver = CarDriver(self, rng)
        return self._driver

    def close(self) -> None:
        """Nothing runs beside this object."""

    # -- the scene --------------------------------------------------------------------------------------------------

    def paint(self, road_name: str, road: captions.Rgb, grass_name: str, grass: captions.Rgb) -> None:
        """Begin a new scene in these colours."""
        self._road, self._grass, self._patch = road, grass, captions.patch_colour(grass)
        texts = [captions.caption(self._colours, road_name, grass_name, self._split) for _ in range(4)]
        self._scene = {
            "captions": texts,
            "road_name": road_name,
            "grass_name": grass_name,
            "road": list(road),
            "grass": list(grass),
        }
        self._recolour_in = int(self._colours.integers(*(_TWIN_SCENE if self._palette else _SCENE)))

    def scene(self) -> dict[str, Any]:
        """Captions, colour names and RGB of the scene that the frame shows."""
        return self._scene

    # -- the true state ---------------------------------------------------------------------------------------------

    @property
    def steer(self) -> float:
        """Steering as the keys have brought it about: -lock (left) to +lock (right)."""
        return self._steer

    def pose(self) -> tuple[float, float, float, float, float]:
        """x, y, yaw (0 faces +y, counter-clockwise), forward speed and sideways speed (to the right), units/s."""
        hull = self._env.car.hull
        (x, y), (vx, vy), yaw = hull.position, hull.linearVelocity, hull.angle
        sin, cos = math.sin(yaw), math.cos(yaw)
        return x, y, yaw, vy * cos - vx * sin, vx * cos + vy * sin

    def nearest(self) -> int:
        """Index of the track point that the car is at; keeps to its stretch where the track passes itself."""
        x, y, *_ = self.pose()
        around = np.arange(self._nearest - 12, self._nearest + 13) % len(self.track)
        distances = np.hypot(self.track[around, 0] - x, self.track[around, 1] - y)
        best = int(np.argmin(distances))
        self._nearest = int(around[best])
        if distances[best] > 2 * car_racing.TRACK_WIDTH:
            self._nearest = int(np.argmin(np.hypot(self.track[:, 0] - x, self.track[:, 1] - y)))
        return self._nearest

    def track_from_car(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The track's points as the car has them: units to the right of it and ahead of it."""
        x, y, yaw, *_ = self.pose()
        across, along = self.track[:, 0] - x, self.track[:, 1] - y
        return across * math.cos(yaw) + along * math.sin(yaw), along * math.cos(yaw) - across * math.sin(yaw)

    def road_in_view(self) -> bool:
        """Whether the picture shows some of the road."""
        right, ahead = self.track_from_car()
        return bool(((np.abs(right) < _SIDES) & (ahead < _FRONT) & (ahead > -_BACK)).any())

    def read_facts(self) -> NDArray[np.float32]:
        """See `facts`: on_road is the share of wheels on tiles, yaw_rate rad/s (left positive), slip the angle between
        heading and motion (motion to the right positive), curvature 1/units over the 14 units ahead (left positive),
        off_centre the distance from the centre line in half road widths, in_view whether the picture shows any road,
        open_loop whether the driver's latest keys were pressed without regard to the road."""
        car = self._env.car
        x, y, yaw, forward, sideways = self.pose()
        at = self.nearest()
        track_x, track_y, beta = self.track[at]
        way = 1 if math.cos(yaw - beta) >= 0 else -1
        ahead = self.track[(at + way * 4) % len(self.track), 2]
        speed = math.hypot(forward, sideways)
        values = (
            sum(bool(wheel.tiles) for wheel in car.wheels) / 4,
            x,
            y,
            math.remainder(yaw, 2 * math.pi),
            speed,
            car.hull.angularVelocity,
            math.atan2(sideways, abs(forward)) if speed > 3 else 0.0,
            self._steer,
            math.remainder(ahead - beta, 2 * math.pi) / (4 * car_racing.TRACK_DETAIL_STEP),
            math.hypot(x - track_x, y - track_y) / car_racing.TRACK_WIDTH,
            self.road_in_view(),
            self._driver is not None and self._driver.open_loop,
        )
        return np.array(values, np.float32)

    def _read_track(self) -> None:
        self.track = np.array([(x, y, beta) for _, beta, x, y in self._env.track])  # [points, (x, y, beta)]
        tiles = [(poly, colour) for poly, colour in self._env.road_poly if not isinstance(colour, tuple)]
        curbs = [(poly, colour) for poly, colour in self._env.road_poly if isinstance(colour, tuple)]
        self._tiles = np.array([poly for poly, _ in tiles])  # [tiles, 4, (x, y)]
        self._curbs = np.array([poly for poly, _ in curbs]).reshape(-1, 4, 2)
        self._curb_colours = [colour for _, colour in curbs]

    def _wear_out(self, wear: Wear) -> None:
        self._wear, there = wear, wear.curbs(self._curbs, self._tiles)
        self._curbs, self._curb_colours = self._curbs[there], list(itertools.compress(self._curb_colours, there))
        self._tiles = wear.tiles(self._tiles)

    # -- the picture ------------------------------------------------------------------------------------------------

    def look(self) -> Frame:
        """The frame as things are now."""
        size = len(self._canvas)
        hull = self._env.car.hull
        position, yaw = np.array(hull.position), hull.angle
        cv2.rectangle(self._canvas, (0, 0), (size, size), self._grass, -1)
        patches = _patches_near(position)
        if self._wear:
            patches = self._wear.patches(patches)
        self._fill(self._on_canvas(patches, position, yaw), self._patch)
        near = self._near(self._curbs, position)
        for poly, index in zip(self._on_canvas(self._curbs[near], position, yaw), near, strict=True):
            cv2.fillConvexPoly(self._canvas, poly, self._curb_colours[index], cv2.LINE_8, _SUBPIXEL_BITS)
        near = self._near(self._tiles, position)
        tiles = self._on_canvas(self._tiles[near], position, yaw)
        if self._wear:
            for poly, index in zip(tiles, near, strict=True):
                if self._wear.gone[index]:
                    continue
                red, green, blue = np.clip(self._wear.stain[index] + self._road, 0, 255).astype(int).tolist()
                self._fill(poly[None], captions.shaded((red, green, blue), _STRIPE * (index % 3 - 1)))
        else:
            for shade in range(3):
                self._fill(tiles[near % 3 == shade], captions.shaded(self._road, _STRIPE * (shade - 1)))
        for wheel in self._env.car.wheels:
            self._fill(self._on_canvas(_wheel_corners(wheel), position, yaw)[None], car_dynamics.WHEEL_COLOR)
        self._fill(self._hull, _HULL_COLOUR)
        small = cv2.resize(self._canvas, (self.width, self.height), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)

    def _near(self, polygons: NDArray[np.float64], position: NDArray[np.float64]) -> NDArray[np.intp]:
        away = polygons[:, 0] - position if len(polygons) else np.empty((0, 2))
        return np.flatnonzero(np.einsum("pc,pc->p", away, away) < _REACH**2)

    def _on_canvas(self, points: NDArray[np.float64], position: NDArray[np.float64], yaw: float) -> NDArray[np.int32]:
        """World coordinates [..., 2] to cv2's fixed-point pixels."""
        sin, cos = math.sin(yaw), math.cos(yaw)
        return self._in_car_frame((points - position) @ np.array([[cos, -sin], [sin, cos]]))

    def _in_car_frame(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        """[..., (right, forward)] of the car to cv2's fixed-point pixels, whose centres are whole numbers."""
        centre = np.array([0.5, CAR_FROM_TOP]) * len(self._canvas) - 0.5
        pixels = points * np.array([self._scale, -self._scale]) + centre
        return np.rint(pixels * 2**_SUBPIXEL_BITS).astype(np.int32)

    def _fill(self, polygons: list[NDArray[np.int32]] | NDArray[np.int32], colour: tuple[int, int, int]) -> None:
        for poly in polygons:
            cv2.fillConvexPoly(self._canvas, poly, colour, cv2.LINE_8, _SUBPIXEL_BITS)


_HULL = (car_dynamics.HULL_POLY1, car_dynamics.HULL_POLY2, car_dynamics.HULL_POLY3, car_dynamics.HULL_POLY4)
_HULL_COLOUR = (204, 0, 0)
_WHEEL = car_dynamics.SIZE * np.array(
    [(sx * car_dynamics.WHEEL_W, sy * car_dynamics.WHEEL_R) for sx, sy in ((-1, 1), (1, 1), (1, -1), (-1, -1))]
)


def _wheel_corners(wheel: Any) -> NDArray[np.float64]:
    sin, cos = math.sin(wheel.angle), math.cos(wheel.angle)
    return _WHEEL @ np.array([[cos, sin], [-sin, cos]]) + np.array(wheel.position)


def _patches_near(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners [patches, 4, 2] of the grass's squares: every second one each way, on without end."""
    side = car_racing.GRASS_DIM
    low = np.floor((position - _REACH) / (2 * side)).astype(int)
    high = np.ceil((position + _REACH) / (2 * side)).astype(int)
    corner = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1])), -1).reshape(-1, 1, 2)
    return (2.0 * corner + np.array([(1, 0), (0, 0), (0, 1), (1, 1)])) * side

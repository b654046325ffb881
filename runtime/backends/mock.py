"""A world without a network, in plain numpy: a dot drives over an endless plain with a winding road.

It keeps the contract of real worlds (state, noise, prompt, recache) and ticks in about 50 µs, so that hosts and our own
tests run without a model. Steer with left and right, drive with gas and brake; the prompt names the road's and the
grass's colour.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from runtime.backends import Backend, check_precision
from runtime.errors import PromptError
from runtime.manifest import parse_manifest
from runtime.prompt import check_prompt
from runtime.world import State, World

HEIGHT, WIDTH = 64, 96  # pixels
PLAIN = 256  # pixels from one repetition of the plain to the next, a power of two
COLOURS = {
    "red": (200, 60, 50), "green": (80, 160, 70), "blue": (60, 90, 190), "yellow": (220, 200, 80),
    "white": (235, 235, 235), "black": (30, 30, 30), "grey": (120, 120, 120), "orange": (225, 140, 50),
    "purple": (140, 70, 170),
    "brown": (125, 85, 55), "pink": (235, 150, 180), "turquoise": (70, 200, 190),
}  # fmt: skip
MANIFEST = {
    "format": 1, "name": "mock", "title": "A dot on a plain, no network", "tick_hz": 60,
    "height": HEIGHT, "width": WIDTH,
    "preview": False, "licence": "MIT", "credits": "worldloop contributors", "trained_on": "nothing",
    "actions": [
        {"name": "left", "keys": ["left", "a"]}, {"name": "right", "keys": ["right", "d"]},
        {"name": "gas", "keys": ["up", "w"]}, {"name": "brake", "keys": ["down", "s", "space"]},
    ],
    "prompts": ["a grey road through green grass", "a yellow road through blue water", "a red road in white snow"],
    "default_prompt": "a grey road through green grass", "default_start": "road",
    "state": {
        "car": {"shape": [1, 4], "dtype": "float32"},  # x and y in pixels, heading in radians (0 = up), pixels a tick
        "palette": {"shape": [1, 4, 3], "dtype": "uint8"},  # road, grass, darker grass, line: filled by recache
        "tick": {"shape": [1], "dtype": "int64"},
    },
    "noise": {"shape": [1, 1, 2, 2]}, "prompt": {"shape": [2, 3]}, "graphs": {}, "starts": [], "files": {},
    "environment": {"id": "none"},
}  # fmt: skip


def mock_world() -> World:
    raw = json.dumps(MANIFEST, sort_keys=True).encode()
    return World(parse_manifest(raw, "mock"), hashlib.sha256(raw).hexdigest())


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    check_precision("mock", precision, ("fp32",))
    return MockBackend(players)


@dataclass(frozen=True)
class MockBackend:
    players: int = 1
    name: str = "mock"
    precision: str = "fp32"
    threads: int = 1

    def tick(
        self, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        car = into.get("car")
        if car is None:
            car = np.empty_like(state["car"])
        frame = np.empty((self.players, HEIGHT, WIDTH, 3), np.uint8)
        for player in range(self.players):
            car[player] = drive(state["car"][player].tolist(), action[player].tolist(), noise[player].flat[0])
            frame[player] = draw(car[player].tolist(), state["palette"][player])
        return frame, {**state, "car": car, "tick": state["tick"] + 1}

    def recache(self, state: State, prompt: np.ndarray) -> State:
        road, grass = prompt[:, 0:1] * 255, prompt[:, 1:2] * 255
        palette = np.concatenate([road, grass, grass * 0.85, 255 - road * 0.3], axis=1)
        return {**state, "palette": np.rint(palette).astype(np.uint8)}

    def embed(self, text: str) -> np.ndarray:
        """The first two colour words, as numbers from 0 to 1: road, grass."""
        check_prompt(text)
        words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in COLOURS]
        if not words:
            raise PromptError(f"the mock world knows only colours: name one or two of {', '.join(COLOURS)}")
        road, grass = COLOURS[words[0]], COLOURS[words[1] if len(words) > 1 else "green"]
        return np.array([[road, grass]], np.float32) / 255


def drive(car: list[float], action: list[float], bump: float) -> tuple[float, float, float, float]:
    """The car after one tick. The road is bumpy: noise turns a driving car a little."""
    x, y, heading, speed = car
    left, right, gas, brake = action
    speed = max(0.0, (speed + 0.06 * gas) * 0.98 - 0.1 * brake)
    heading += (0.05 * (right - left) + 0.01 * float(bump)) * min(1.0, speed)
    return (x + speed * math.sin(heading)) % PLAIN, (y - speed * math.cos(heading)) % PLAIN, heading, speed


def draw(car: list[float], palette: np.ndarray) -> np.ndarray:
    """The plain around the car, which stays in the middle, its nose ahead. uint8 [HEIGHT, WIDTH, 3]"""
    x, y, heading, _ = car
    left, top = int(x), int(y)
    view = palette.take(plain()[top : top + HEIGHT, left : left + WIDTH], axis=0)
    middle, centre = HEIGHT // 2, WIDTH // 2
    view[middle - 3 : middle + 3, centre - 3 : centre + 3] = (220, 40, 40)
    nose_y, nose_x = middle - round(5 * math.cos(heading)), centre + round(5 * math.sin(heading))
    view[nose_y - 1 : nose_y + 1, nose_x - 1 : nose_x + 1] = (255, 255, 255)
    return view


@cache
def plain() -> np.ndarray:
    """Palette entries of two plains side by side in each direction, so that every view is one slice."""
    y, x = np.mgrid[0:PLAIN, 0:PLAIN]
    # The car starts at 0, 0 and the view's middle is half a view further: there the road runs through it.
    middle = WIDTH // 2 + 40 * np.sin(2 * np.pi * (y - HEIGHT // 2) / PLAIN)
    off = np.abs((x - middle + PLAIN // 2) % PLAIN - PLAIN // 2)
    checks = 1 + ((x // 16 + y // 16) % 2)
    tile = np.where(off < 12, 0, checks)
    tile = np.where((off < 1) & (y % 16 < 8), 3, tile)
    return np.tile(tile, (2, 2)).astype(np.intp)  # intp: take() would convert anything else every time

"""The window: shows frames enlarged by a whole number, so that they stay sharp; turns events into requests."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from runtime.bindings import POINTER, Controls
from runtime.errors import DisplayError
from runtime.frames import as_surface
from runtime.loop import Request, Status
from runtime.manifest import PLAYER_KEYS

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame
from pygame._sdl2 import controller

FIRST_SIDE = 640  # pixels; the first window is at least about this high or wide
NOTICE_FRAMES = 60
MAX_PROMPT = 200  # characters, a few lines
INK, SHADE = (255, 255, 255), (0, 0, 0, 150)
REQUESTS = {
    "p": "pause", ".": "step", "r": "restart", "f3": "fork", "f4": "branch", "f5": "save", "f6": "next_save",
    "f9": "load",
}  # fmt: skip
TYPED = {"tab": "prompt", "f7": "save_as"}  # keys that ask for a line of text, and what it is for
REWIND = "backspace"
MOUSE = {1: "left", 2: "middle", 3: "right", 4: "wheel up", 5: "wheel down"}
PAD = {  # SDL's names of a controller's buttons, in the order of their numbers
    name: f"pad:{key}"
    for name, key in (
        (pygame.CONTROLLER_BUTTON_A, "a"), (pygame.CONTROLLER_BUTTON_B, "b"), (pygame.CONTROLLER_BUTTON_X, "x"),
        (pygame.CONTROLLER_BUTTON_Y, "y"), (pygame.CONTROLLER_BUTTON_LEFTSHOULDER, "l"),
        (pygame.CONTROLLER_BUTTON_RIGHTSHOULDER, "r"), (pygame.CONTROLLER_BUTTON_DPAD_LEFT, "left"),
        (pygame.CONTROLLER_BUTTON_DPAD_RIGHT, "right"), (pygame.CONTROLLER_BUTTON_DPAD_UP, "up"),
        (pygame.CONTROLLER_BUTTON_DPAD_DOWN, "down"),
    )
}  # fmt: skip
AXES = {  # below and above the middle
    pygame.CONTROLLER_AXIS_LEFTX: ("pad:left", "pad:right"), pygame.CONTROLLER_AXIS_LEFTY: ("pad:up", "pad:down"),
    pygame.CONTROLLER_AXIS_TRIGGERLEFT: ("", "pad:lt"), pygame.CONTROLLER_AXIS_TRIGGERRIGHT: ("", "pad:rt"),
}  # fmt: skip
STICK, MOVED = 0.5, 6  # how far a stick or trigger must go (of 1), and the mouse (pixels), to count as pressed


class Window:
    """A pygame window. Use with `with`; `is_open` turns false when the player leaves (Esc or the close button)."""

    def __init__(
        self, title: str, size: tuple[int, int], controls: Controls, prompts: Sequence[str], now: Callable[[], float],
        rebound: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """rebound: called when the player has chosen other keys, which `controls` then has."""
        self.controls, self.rebound = controls, rebound
        self.suggestions = deque(prompts)
        self.now = now
        self.is_open = True
        self.show_hud = False
        self.rewinding = False
        self._typed: str | None = None  # the line being typed
        self._typed_for = "prompt"
        self._binding: list[str] | None = None  # actions whose keys are still to be chosen, this one first
        self._bound: dict[str, tuple[str, ...]] = {}
        self._leaning: set[str] = set()  # directions in which sticks lean
        self._travelled = {"x": 0, "y": 0}  # pixels that the mouse has moved since it last counted as pressed
        self._notice, self._notice_left = "", 0
        self._notice_picture: pygame.Surface | None = None
        self._requests: list[Request] = []
        self._open(title, size)

    def _open(self, title: str, size: tuple[int, int]) -> None:
        width, height = size
        times = max(1, FIRST_SIDE // max(width, height))
        try:
            if not has_display():
                raise pygame.error("no display found")
            pygame.display.init()
            pygame.font.init()
            self._surface = pygame.display.set_mode((width * times, height * times), pygame.RESIZABLE)
        except pygame.error as error:
            pygame.display.quit()
            raise DisplayError(
                f"no window can be opened ({error}): set DISPLAY, or play with --headless --ticks N"
            ) from error
        self._area = self._surface.get_rect()  # of the picture in it
        pygame.display.set_caption(f"worldloop · {title}")
        pygame.joystick.init()
        controller.init()
        self._pads = [controller.Controller(n) for n in range(controller.get_count()) if controller.is_controller(n)]
        self._font = pygame.font.Font(None, 22)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        controller.quit()  # pygame.quit alone leaves it so that a third window would hear of no gamepad
        pygame.quit()

    def sleep(self, seconds: float) -> None:
        """Rest, but take events when they come, so that each has its own time. Whole milliseconds; the rest is left."""
        ms = int(seconds * 1000)
        if ms < 1:
            pygame.time.wait(0)
            return
        event = pygame.event.wait(ms)
        if event.type != pygame.NOEVENT:
            self._take(event)

    def requests(self) -> list[Request]:
        for event in pygame.event.get():
            self._take(event)
        requests, self._requests = self._requests, []
        return requests

    def notify(self, text: str, picture: np.ndarray | None = None) -> None:
        self._notice, self._notice_left = text, NOTICE_FRAMES
        self._notice_picture = None if picture is None else as_surface(picture.copy())

    def picture(self, frame: np.ndarray) -> None:
        """Show a frame and nothing else."""
        self._draw(frame)
        pygame.display.flip()

    def show(self, frame: np.ndarray, status: Status) -> None:
        self._draw(frame)
        if self._binding is not None:
            self._write(self._binding_lines(), top=True)
        elif self.show_hud:
            self._write(hud_lines(status), top=True)
        elif status.paused:
            self._write(["paused: P goes on, . steps"], top=True)
        below = []
        if self._typed is not None:
            told = {"prompt": "prompt: {}_  (up and down: suggestions)", "save_as": "save as: {}_"}
            below.append(told[self._typed_for].format(self._typed))
        if self._notice_left:
            below.append(self._notice)
        above = self._write(below, top=False)
        if self._notice_left:
            self._notice_left -= 1
            self._show_picture(above)
        pygame.display.flip()

    def _draw(self, frame: np.ndarray) -> None:
        picture = as_surface(frame)
        area = self._area = fit(picture.get_size(), self._surface.get_size())
        self._surface.fill((0, 0, 0))
        self._surface.blit(pygame.transform.scale(picture, area.size), area)

    def _show_picture(self, bottom: int) -> None:
        """The notice's picture at the right, an eighth of the window's area at most. bottom: pixels from the top."""
        if self._notice_picture is not None:
            width, height = self._surface.get_size()
            area = fit(self._notice_picture.get_size(), (width // 3, height // 3))
            area.bottomright = width - 8, bottom - 8
            self._surface.blit(pygame.transform.scale(self._notice_picture, area.size), area)

    def _take(self, event: pygame.event.Event) -> None:
        if event.type == pygame.QUIT:
            self.is_open = False
        elif event.type in (pygame.WINDOWFOCUSLOST, pygame.CONTROLLERDEVICEREMOVED):  # releases will not be heard
            self.controls.release_all()
            self._leaning.clear()
            self.rewinding = False
        elif event.type == pygame.TEXTINPUT and self._typed is not None:
            self._typed = (self._typed + event.text)[:MAX_PROMPT]
        elif event.type == pygame.KEYDOWN and self._typed is not None:
            self._type(pygame.key.name(event.key).lower())
        else:
            if event.type == pygame.MOUSEMOTION:
                (x, y), area = event.pos, self._area
                self.controls.point((x - area.left) / area.width, (y - area.top) / area.height, self.now())
            for key, down in self._keys(event):
                self._press(key) if down else self._release(key)

    def _keys(self, event: pygame.event.Event) -> list[tuple[str, bool]]:
        """What an event of keyboard, mouse or gamepad presses (True) and releases (False), by the keys' names."""
        if event.type in (pygame.KEYDOWN, pygame.KEYUP):
            return [(pygame.key.name(event.key).lower(), event.type == pygame.KEYDOWN)]
        if event.type in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP) and event.button in MOUSE:
            return [(f"mouse:{MOUSE[event.button]}", event.type == pygame.MOUSEBUTTONDOWN)]
        if event.type == pygame.MOUSEMOTION:
            x, y = event.rel
            moved = self._travel("x", x, ("left", "right")) + self._travel("y", y, ("up", "down"))
            return [(f"mouse:move {way}", down) for way in moved for down in (True, False)]
        if event.type in (pygame.CONTROLLERBUTTONDOWN, pygame.CONTROLLERBUTTONUP) and event.button in PAD:
            return [(PAD[event.button], event.type == pygame.CONTROLLERBUTTONDOWN)]
        if event.type == pygame.CONTROLLERAXISMOTION and event.axis in AXES:
            return self._lean(AXES[event.axis], event.value / 32768)
        if event.type == pygame.CONTROLLERDEVICEADDED:
            self._pads.append(controller.Controller(event.device_index))
        return []

    def _travel(self, axis: str, pixels: int, ways: tuple[str, str]) -> list[str]:
        """The mouse has moved along one axis. A quick mouse tells of every pixel, so they are added up."""
        far = self._travelled[axis] + pixels
        self._travelled[axis] = 0 if abs(far) > MOVED else far
        return [ways[far > 0]] if abs(far) > MOVED else []

    def _lean(self, ways: tuple[str, str], value: float) -> list[tuple[str, bool]]:
        """A stick has moved along one axis: what begins and ends to be pressed by that."""
        now = {way for way, far in zip(ways, (value < -STICK, value > STICK), strict=True) if far}
        before = self._leaning & set(ways)
        self._leaning = (self._leaning - before) | now
        return [*((way, False) for way in before - now), *((way, True) for way in now - before)]

    def _press(self, key: str) -> None:
        if self._binding is not None:
            self._bind(key)
        elif key == "escape":
            self.is_open = False
        elif key in TYPED:
            self._typed, self._typed_for = "", TYPED[key]
            self.controls.release_all()
            pygame.key.start_text_input()
        elif key == "h":
            self.show_hud = not self.show_hud
        elif key == "f2":
            keys = self.controls.keys.items()
            self._binding = [action for action, own in keys if not any(key.startswith(POINTER) for key in own)] or None
            self._bound = {}
        elif key == REWIND:
            self.rewinding = True
        elif key in REQUESTS:
            self._requests.append(Request(REQUESTS[key]))
        else:
            self.controls.press(key, self.now())

    def _release(self, key: str) -> None:
        if key == REWIND:
            self.rewinding = False
        self.controls.release(key, self.now())

    def _bind(self, key: str) -> None:
        """A key while keys are chosen: it is for the action that was asked for."""
        assert self._binding, "it ends with the last action"
        action = self._binding[0]
        if key == "escape":
            self._binding = None
            return
        if key.startswith("mouse:move"):  # on the way to a button
            return
        if key in PLAYER_KEYS:
            self.notify(f"{key} is a key of the window: choose another")
            return
        self._bound[action] = self.controls.keys[action] if key == "return" else (key,)
        del self._binding[0]
        if not self._binding:
            self._binding = None
            self.controls.bind({**self.controls.keys, **self._bound})
            self.rebound()

    def _binding_lines(self) -> list[str]:
        assert self._binding, "it ends with the last action"
        action = self._binding[0]
        return [
            f"press a key, button or mouse button for: {action}",
            f"return keeps {', '.join(self.controls.keys[action]) or 'none'}; escape changes nothing",
        ]

    def _type(self, key: str) -> None:
        """A key while a line is typed; letters come as TEXTINPUT."""
        assert self._typed is not None, "only called while typing"
        if key in ("return", "enter") and self._typed.strip():
            self._requests.append(Request(self._typed_for, self._typed.strip()))
        if key in ("return", "enter", "escape", "tab"):
            self._typed = None
            pygame.key.stop_text_input()
        elif key == "backspace":
            self._typed = self._typed[:-1]
        elif key in ("up", "down") and self.suggestions and self._typed_for == "prompt":
            self._typed = self.suggestions[0]
            self.suggestions.rotate(-1 if key == "down" else 1)

    def _write(self, lines: Sequence[str], top: bool) -> int:
        """At the top or the bottom; where the first line begins, in pixels from the top."""
        height = self._font.get_linesize() + 4
        lines = [part for line in lines for part in wrapped(line, self._font, self._surface.get_width() - 16)]
        begin = at = 4 if top else self._surface.get_height() - height * len(lines) - 4
        for line in lines:
            text = self._font.render(line, True, INK)
            shade = pygame.Surface((text.get_width() + 8, height), pygame.SRCALPHA)
            shade.fill(SHADE)
            self._surface.blit(shade, (4, at))
            self._surface.blit(text, (8, at + 2))
            at += height
        return begin


def has_display() -> bool:
    """On Linux SDL would otherwise take an invisible driver, and libraries below it complain on their own."""
    return not sys.platform.startswith("linux") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    )


def fit(picture: tuple[int, int], window: tuple[int, int]) -> pygame.Rect:
    """Where a picture goes: in the middle, enlarged by the largest whole number that fits, or made smaller."""
    width, height = picture
    times = min(window[0] // width, window[1] // height)
    if times >= 1:
        size = width * times, height * times
    else:
        scale = min(window[0] / width, window[1] / height)
        size = max(1, int(width * scale)), max(1, int(height * scale))
    return pygame.Rect((window[0] - size[0]) // 2, (window[1] - size[1]) // 2, *size)


def wrapped(line: str, font: pygame.font.Font, width: int) -> list[str]:
    """The line in pieces of at most `width` pixels, broken between words where that is possible."""
    pieces = [""]
    for word in re.findall(r"\S+\s*|\s+", line):
        if pieces[-1] and font.size(pieces[-1] + word.rstrip())[0] > width:
            pieces.append("")
        for letter in word:  # a word alone may be too long
            if pieces[-1] and letter != " " and font.size(pieces[-1] + letter)[0] > width:
                pieces.append("")
            pieces[-1] += letter
    return pieces


def hud_lines(status: Status) -> list[str]:
    response = "-" if status.response is None else f"{status.response:.1f} ticks"
    state = "  paused" if status.paused else ""
    return [
        f"tick {status.tick}  {status.tick_ms:.1f} ms  late {status.late_ticks}  response {response}{state}",
        f"graph {status.graph}  answer {status.wishes.answer}  too slow: {status.wishes.policy}  "
        f"input {status.answered}  past {status.past:.0f} s  {status.branch}",
        f"seed {status.seed}  prompt: {status.prompt}",
    ]

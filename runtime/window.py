"""The window: shows frames enlarged by a whole number, so that they stay sharp; turns events into requests."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from runtime.bindings import Controls
from runtime.errors import DisplayError
from runtime.frames import as_surface
from runtime.loop import Request, Status

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import pygame

FIRST_SIDE = 640  # pixels; the first window is at least about this high or wide
NOTICE_FRAMES = 60
MAX_PROMPT = 200  # characters that fit on a line or two
INK, SHADE = (255, 255, 255), (0, 0, 0, 150)
REQUESTS = {"p": "pause", ".": "step", "r": "restart", "f5": "save", "f9": "load"}


class Window:
    """A pygame window. Use with `with`; `is_open` turns false when the player leaves (Esc or the close button)."""

    def __init__(
        self, title: str, size: tuple[int, int], controls: Controls, prompts: Sequence[str], now: Callable[[], float]
    ) -> None:
        self.controls = controls
        self.suggestions = deque(prompts)
        self.now = now
        self.is_open = True
        self.show_hud = False
        self._typed: str | None = None  # the prompt being typed
        self._notice, self._notice_left = "", 0
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
        pygame.display.set_caption(f"worldloop · {title}")
        self._font = pygame.font.Font(None, 22)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
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

    def notify(self, text: str) -> None:
        self._notice, self._notice_left = text, NOTICE_FRAMES

    def picture(self, frame: np.ndarray) -> None:
        """Show a frame and nothing else."""
        self._draw(frame)
        pygame.display.flip()

    def show(self, frame: np.ndarray, status: Status) -> None:
        self._draw(frame)
        if self.show_hud:
            self._write(hud_lines(status), top=True)
        elif status.paused:
            self._write(["paused: P goes on, . steps"], top=True)
        below = [f"prompt: {self._typed}_  (up and down: suggestions)"] if self._typed is not None else []
        if self._notice_left:
            self._notice_left -= 1
            below.append(self._notice)
        self._write(below, top=False)
        pygame.display.flip()

    def _draw(self, frame: np.ndarray) -> None:
        picture = as_surface(frame)
        area = fit(picture.get_size(), self._surface.get_size())
        self._surface.fill((0, 0, 0))
        self._surface.blit(pygame.transform.scale(picture, area.size), area)

    def _take(self, event: pygame.event.Event) -> None:
        if event.type == pygame.QUIT:
            self.is_open = False
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.controls.release_all()
        elif event.type == pygame.TEXTINPUT and self._typed is not None:
            self._typed = (self._typed + event.text)[:MAX_PROMPT]
        elif event.type == pygame.KEYDOWN:
            key = pygame.key.name(event.key).lower()
            if self._typed is None:
                self._press(key)
            else:
                self._type(key)
        elif event.type == pygame.KEYUP:
            self.controls.release(pygame.key.name(event.key).lower(), self.now())

    def _press(self, key: str) -> None:
        if key == "escape":
            self.is_open = False
        elif key == "tab":
            self._typed = ""
            self.controls.release_all()
            pygame.key.start_text_input()
        elif key == "h":
            self.show_hud = not self.show_hud
        elif key in REQUESTS:
            self._requests.append(Request(REQUESTS[key]))
        else:
            self.controls.press(key, self.now())

    def _type(self, key: str) -> None:
        """A key while the prompt is typed; letters come as TEXTINPUT."""
        assert self._typed is not None, "only called while typing"
        if key in ("return", "enter") and self._typed.strip():
            self._requests.append(Request("prompt", self._typed.strip()))
        if key in ("return", "enter", "escape", "tab"):
            self._typed = None
            pygame.key.stop_text_input()
        elif key == "backspace":
            self._typed = self._typed[:-1]
        elif key in ("up", "down") and self.suggestions:
            self._typed = self.suggestions[0]
            self.suggestions.rotate(-1 if key == "down" else 1)

    def _write(self, lines: Sequence[str], top: bool) -> None:
        height = self._font.get_linesize() + 4
        at = 4 if top else self._surface.get_height() - height * len(lines) - 4
        for line in lines:
            text = self._font.render(line, True, INK)
            shade = pygame.Surface((text.get_width() + 8, height), pygame.SRCALPHA)
            shade.fill(SHADE)
            self._surface.blit(shade, (4, at))
            self._surface.blit(text, (8, at + 2))
            at += height


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


def hud_lines(status: Status) -> list[str]:
    response = "-" if status.response is None else f"{status.response:.1f} ticks"
    state = "  paused" if status.paused else ""
    return [
        f"tick {status.tick}  {status.tick_ms:.1f} ms  late {status.late_ticks}  response {response}{state}",
        f"seed {status.seed}  prompt: {status.prompt}",
    ]

"""A window and a video for hosts that draw with pygame themselves: what they show, and what the player presses."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pygame

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.errors import WorldloopError
from runtime.presenters import VideoFile
from runtime.window import has_display
from runtime.world import DEFAULT_WORLD


@dataclass(frozen=True)
class Options:
    """What such a program is told. ticks: how long it goes without a window."""

    world: str
    headless: bool
    ticks: int
    video: Path | None
    seed: int


def run(program: Callable[[Options], None], about: str | None, *, ticks: int, seed: int = 0) -> None:
    """Read the command line and run the program; what is wrong is said in a line. ticks, seed: the defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default=DEFAULT_WORLD)
    parser.add_argument("--headless", action="store_true", help="no window; it plays by itself")
    parser.add_argument("--ticks", type=int, default=ticks, help="how long it goes without a window")
    parser.add_argument("--video", type=Path, help="write what is seen")
    parser.add_argument("--seed", type=int, default=seed)
    given = Options(**vars(parser.parse_args()))
    if not given.headless and not has_display():
        parser.error("no window can be opened: set DISPLAY, or use --headless --video FILE")
    try:
        program(given)
    except WorldloopError as error:
        parser.error(str(error))


class Stage:
    """Use with `with`. is_open: until the player leaves, by Esc or the close button. clock: of `hz` pictures a second.

    window: whether there is one. video: a file to write.
    """

    def __init__(
        self, title: str, size: tuple[int, int], hz: float, *, window: bool = True, video: Path | None = None
    ) -> None:
        self.title, self.size, self.clock = title, size, Clock(hz)
        self.is_open = True
        self._window = window
        self._display: pygame.Surface | None = None
        self._video = VideoFile(video, hz) if video else None
        self._open = ExitStack()

    def __enter__(self) -> Stage:
        if self._window:
            self._display = pygame.display.set_mode(self.size)
            pygame.display.set_caption(self.title)
        if self._video:
            self._open.enter_context(self._video)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def show(self, picture: pygame.Surface) -> None:
        """picture: of `size`."""
        if self._display:
            self._display.blit(picture, (0, 0))
            pygame.display.flip()
        if self._video:
            self._video.show(pygame.surfarray.array3d(picture).swapaxes(0, 1))

    def events(self, controls: Controls) -> list[pygame.event.Event]:
        """What has happened since the last call. `controls` have heard of it, as far as they know the keys."""
        events = pygame.event.get()
        for event in events:
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                self.is_open = False
            elif event.type == pygame.WINDOWFOCUSLOST:
                controls.release_all()
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
                turn = controls.press if event.type == pygame.KEYDOWN else controls.release
                turn(pygame.key.name(event.key).lower(), self.clock.now())
        return events

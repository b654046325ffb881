"""The real environment and the world that learnt it, side by side under the same keys and the same text.

    python -m demos.side_by_side [WORLD]                                   its keys play both, R restarts, Esc leaves
    python -m demos.side_by_side --headless --ticks 250 --video both.mp4   without a window; the recorder's driver plays

Left the environment, right the world. When the environment changes its colours, its caption becomes the world's prompt.
The racer begins where the environment's episode of seed 30 does; then they part ways, as what comes into the picture
the world has to make up. Needs the train extra, and a world that names its environment.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pygame

from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.errors import MissingExtraError, UsageError, WorldloopError
from runtime.frames import as_surface
from runtime.presenters import VideoFile
from runtime.session import Session
from runtime.window import fit, has_display
from runtime.world import DEFAULT_WORLD, World

SIDE, GAP, BELOW = 384, 12, 108  # pixels: of each picture, around them, below them for keys and text
SIZE = 2 * SIDE + 3 * GAP, SIDE + GAP + BELOW
BACK, PALE, DIM, LIT = (22, 24, 32), (214, 218, 228), (52, 56, 70), (240, 170, 60)


class Pair:
    """An environment and a world that get the same actions. pictures: of both, uint8 [height, width, 3] each."""

    def __init__(self, world: World, seed: int) -> None:
        manifest = world.manifest
        if manifest.adapter is None:
            raise UsageError(f"world {manifest.name!r} names no environment: take one that was trained on one")
        try:
            from worldmodel.train.envs import make_adapter_for

            self.real = make_adapter_for(manifest.adapter, manifest.width)
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"the environment needs {error.name}, which is not installed: pip install 'worldloop[train]'"
            ) from error
        pygame.font.init()
        self.session, self.seed = Session(world), seed
        self.begin()

    def begin(self) -> None:
        """Both from the start."""
        real = self.real.reset(self.seed)
        self.driver = self.real.policy(np.random.default_rng(self.seed))
        self.scene = self.real.scene()
        self.session.restart(seed=self.seed, prompt=self.scene["captions"][0])
        self.pictures, self.pressed = (real, self.session.tick()), frozenset[str]()

    def tick(self, actions: Collection[str]) -> None:
        self.pressed = frozenset(actions)
        real, over = self.real.step(np.array([name in actions for name in self.real.actions]))
        if self.real.scene() is not self.scene:
            self.scene = self.real.scene()
            self.session.set_prompt(self.scene["captions"][0])
        self.pictures = real, self.session.tick(self.pressed & {*self.session.world.manifest.action_names})
        if over:
            self.begin()

    def drive(self) -> set[str]:
        """What the driver presses who recorded the world's data; it sees the environment."""
        return {name for name, pressed in zip(self.real.actions, self.driver(), strict=True) if pressed}

    def draw(self) -> pygame.Surface:
        view, font, manifest = pygame.Surface(SIZE), pygame.font.Font(None, 22), self.session.world.manifest
        view.fill(BACK)
        names = f"the environment: {self.real.env_id}", f"the world: {manifest.title}"
        for picture, name, left in zip(self.pictures, names, (GAP, 2 * GAP + SIDE), strict=True):
            surface = as_surface(picture)
            area = fit(surface.get_size(), (SIDE, SIDE)).move(left, GAP)
            view.blit(pygame.transform.scale(surface, area.size), area)
            view.blit(font.render(name, True, PALE), (left, SIDE + GAP + 8))
        x = GAP
        for action in manifest.action_names:
            cap = font.render(action, True, BACK if action in self.pressed else PALE)
            place = cap.get_rect(x=x + 10, y=SIDE + GAP + 40)
            pygame.draw.rect(view, LIT if action in self.pressed else DIM, place.inflate(20, 12), border_radius=6)
            view.blit(cap, place)
            x = place.right + 20
        view.blit(font.render(f"prompt: {self.session.prompt}", True, PALE), (GAP, SIDE + GAP + 74))
        return view


def player(pair: Pair, clock: Clock) -> Iterator[Collection[str]]:
    """What the player presses, tick by tick, until he leaves."""
    controls = Controls(pair.session.world.manifest.actions)
    while True:
        clock.wait()
        for event in pygame.event.get():
            if event.type == pygame.QUIT or getattr(event, "key", None) == pygame.K_ESCAPE:
                return
            if event.type == pygame.KEYDOWN and event.key == pygame.K_r:
                pair.begin()
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
                turn = controls.press if event.type == pygame.KEYDOWN else controls.release
                turn(pygame.key.name(event.key).lower(), clock.now())
        yield controls.read().actions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default=DEFAULT_WORLD)
    parser.add_argument("--headless", action="store_true", help="no window")
    parser.add_argument("--ticks", type=int, default=250, help="how long it goes without a window")
    parser.add_argument("--video", type=Path, help="write what is seen")
    parser.add_argument("--seed", type=int, default=30, help="of the environment's episode and the world's noise")
    arguments = parser.parse_args()
    if not arguments.headless and not has_display():
        parser.error("no window can be opened: set DISPLAY, or use --headless --video FILE")
    try:
        pair = Pair(World.open(arguments.world), arguments.seed)
    except WorldloopError as error:
        parser.error(str(error))
    hertz = pair.session.world.manifest.tick_hz
    display = None if arguments.headless else pygame.display.set_mode(SIZE)
    pygame.display.set_caption("worldloop · side by side")
    played = player(pair, Clock(hertz)) if display else (pair.drive() for _ in range(arguments.ticks))
    with VideoFile(arguments.video, hertz) if arguments.video else nullcontext() as video:
        for actions in played:
            pair.tick(actions)
            view = pair.draw()
            if display:
                display.blit(view, (0, 0))
                pygame.display.flip()
            if video:
                video.show(pygame.surfarray.array3d(view).swapaxes(0, 1))


if __name__ == "__main__":
    main()

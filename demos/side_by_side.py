"""The real environment and the world that learnt it, side by side under the same keys and the same text.

    python -m demos.side_by_side [WORLD]                                   its keys play both, R restarts, Esc leaves
    python -m demos.side_by_side --headless --ticks 250 --video both.mp4   without a window; the recorder's driver plays

Left the environment, right the world. When the environment changes its colours, its caption becomes the world's prompt.
The racer begins where the environment's episode of seed 30 does; then they part ways, as what comes into the picture
the world has to make up. Needs the train extra, and a world that names its environment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import pygame

from runtime.bindings import Controls
from runtime.errors import MissingExtraError, UsageError
from runtime.frames import as_surface
from runtime.session import Session
from runtime.stage import Options, Stage, run
from runtime.window import fit
from runtime.world import World

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

            self.real = make_adapter_for(manifest.adapter, manifest.width, manifest.environment)
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


def player(pair: Pair, stage: Stage) -> Iterator[Collection[str]]:
    """What the player presses, tick by tick, until he leaves."""
    controls = Controls(pair.session.world.manifest.actions)
    while stage.is_open:
        stage.clock.wait()
        if any(event.type == pygame.KEYDOWN and event.key == pygame.K_r for event in stage.events(controls)):
            pair.begin()
        yield controls.read().actions


def main(given: Options) -> None:
    pair, title = Pair(World.open(given.world), given.seed), "worldloop · side by side"
    hertz = pair.session.world.manifest.tick_hz
    with Stage(title, SIZE, hertz, window=not given.headless, video=given.video) as stage:
        for actions in (pair.drive() for _ in range(given.ticks)) if given.headless else player(pair, stage):
            pair.tick(actions)
            stage.show(pair.draw())


if __name__ == "__main__":
    run(main, __doc__, ticks=250, seed=30)

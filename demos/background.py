"""A game of its own, with a world on the television in it: a cat hunts moths, and where she runs, the car drives.

    python -m demos.background [WORLD]                                  arrows run and jump; Return: another channel
    python -m demos.background --headless --ticks 600 --video cat.mp4   without a window; the cat hunts by herself

The game keeps its 60 Hz however slow the world is: `Session.tick_async` asks for a tick and returns at once, with the
newest frame that is finished. A frame is an array, so the game may do more than show it: here it lights the room.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from itertools import cycle

import numpy as np
import pygame

from runtime.bindings import Controls
from runtime.frames import as_surface
from runtime.manifest import Action
from runtime.session import Session
from runtime.stage import Options, Stage, run
from runtime.window import fit
from runtime.world import World

GAME_HZ, KEYS = 60, [Action(name, (name,)) for name in ("left", "right", "up")]
WIDTH, HEIGHT, TIMES, FLOOR = 320, 200, 3, 186  # pixels of the game, each TIMES × TIMES on the display
STRIPE, WOOD, DARK, RUG, SKY = (104, 91, 128), (128, 84, 58), (44, 36, 48), (150, 74, 84), (70, 110, 150)
FUR, PALE, LEAF, POT, WALL = (236, 148, 74), (255, 224, 180), (80, 140, 90), (190, 100, 70), (96, 84, 120)
FURNITURE = (
    (WALL, (0, 0, WIDTH, HEIGHT)), *((STRIPE, (x, 0, 10, 160)) for x in range(0, WIDTH, 20)),
    (WOOD, (0, 160, WIDTH, 40)), (POT, (262, 140, 20, 24)), (PALE, (14, 32, 56, 68)), (SKY, (16, 34, 25, 64)),
    (SKY, (43, 34, 25, 64)), (PALE, (52, 42, 9, 9)), (DARK, (98, 134, 124, 34)), (WOOD, (102, 138, 57, 25)),
    (WOOD, (161, 138, 57, 25)),
)  # fmt: skip


def play(session: Session, game: Game, keys: Iterator[Collection[str]]) -> Iterator[pygame.Surface]:
    """The game's pictures, one for each set of keys. The world is asked, never waited for."""
    manifest = session.world.manifest
    picture = np.zeros((manifest.height, manifest.width, 3), np.uint8)
    room, due = Room((manifest.width, manifest.height)), 0.0
    for pressed in keys:
        game.advance(pressed)
        due += manifest.tick_hz / GAME_HZ
        while due >= 1:  # the world's ticks come at its own rate, which is not the game's
            finished = session.tick_async({"gas", *pressed} & {*manifest.action_names} if pressed else ())
            picture = finished.frame if finished else picture
            due -= 1
        yield room.draw(game, picture)


class Game:
    """The cat and the moths. Knows nothing of worlds."""

    def __init__(self) -> None:
        self.random, self.frame, self.caught = random.Random(7), 0, 0
        self.x, self.y, self.rising, self.facing, self.way = WIDTH / 2, float(FLOOR), 0.0, 1, 0
        self.moths: list[list[float]] = []  # x, y, phase of their loops

    def advance(self, keys: Collection[str]) -> None:
        """One frame: a sixtieth of a second."""
        self.way = ("right" in keys) - ("left" in keys)
        self.facing = self.way or self.facing
        self.x = min(max(self.x + 2.2 * self.way, 14), WIDTH - 14)
        self.rising = 6.2 if "up" in keys and self.y == FLOOR else self.rising - 0.22
        self.y = min(self.y - self.rising, FLOOR)
        if self.frame % 60 == 0 and len(self.moths) < 7:
            self.moths.append([self.random.choice([-6.0, WIDTH + 6.0]), 60.0, self.random.uniform(0, 6)])
        for moth in self.moths:  # to the light, in loops
            moth[2] += 0.06
            moth[0] += 0.008 * (WIDTH / 2 - moth[0]) + 2.3 * math.cos(moth[2])
            moth[1] += 0.008 * (100 - moth[1]) + 1.5 * math.sin(1.7 * moth[2])
        free = [moth for moth in self.moths if math.hypot(moth[0] - self.x, moth[1] - self.y + 16) > 15]
        self.caught, self.moths, self.frame = self.caught + len(self.moths) - len(free), free, self.frame + 1

    def hunt(self) -> set[str]:
        """What the cat would press."""
        x, y, _ = min(self.moths, key=lambda moth: abs(moth[0] - self.x) + abs(moth[1] - self.y), default=(160, 0, 0))
        run = {"right" if x > self.x else "left"} if abs(x - self.x) > 6 else set()
        return run | ({"up"} if abs(x - self.x) < 30 and y > 70 else set())


class Room:
    """Draws everything, the television's picture in its place and its light on all the rest."""

    def __init__(self, picture: tuple[int, int]) -> None:
        pygame.font.init()
        self.font, self.room = pygame.font.Font(None, 26), pygame.Surface((WIDTH, HEIGHT))
        self.screen = fit(picture, (150, 106))
        self.screen.midbottom = WIDTH // 2, 127
        for colour, place in FURNITURE:
            self.room.fill(colour, place)
        for leaf in (-9, -4, 1, 6, 10):
            pygame.draw.line(self.room, LEAF, (272, 140), (272 + 2 * leaf, 104 + abs(leaf)), 3)
        pygame.draw.ellipse(self.room, RUG, (40, 168, 240, 28))
        pygame.draw.rect(self.room, DARK, self.screen.inflate(12, 12), border_radius=5)
        x, y = np.meshgrid(np.arange(WIDTH) - self.screen.centerx, np.arange(HEIGHT) - self.screen.centery)
        self.glow = 0.31 + 0.69 * np.exp(-(x**2 + 1.7 * y**2) / 15000)[..., None]  # [height, width, 1]

    def draw(self, game: Game, picture: np.ndarray) -> pygame.Surface:
        view, colour = self.room.copy(), picture.mean((0, 1))
        light = (110 + 145 * colour / max(colour.max(), 1)) * self.glow
        view.blit(as_surface(light.astype(np.uint8)), (0, 0), special_flags=pygame.BLEND_RGB_MULT)
        view.blit(pygame.transform.scale(as_surface(picture), self.screen.size), self.screen)
        for x, y, phase in game.moths:
            wing = 2 + 3 * abs(math.sin(7 * phase))
            pygame.draw.polygon(view, PALE, [(x + side * wing, y + end) for side in (-1, 1) for end in (-4, 2)])
        x, y, way, swing = game.x, game.y, game.facing, math.sin(game.frame / (3 if game.way else 14))
        for step, leg in enumerate((-8, -5, 5, 8)):
            reach = math.copysign(4, leg) if y < FLOOR else 3 * swing * (-1) ** step * abs(game.way)
            pygame.draw.line(view, FUR, (x + leg, y - 8), (x + leg + reach, y - (y < FLOOR)), 3)
        tail = [(x - way * (9 + 2 * n), y - 11 - 2.6 * n + (n > 2) * 2 * swing) for n in range(6)]
        pygame.draw.lines(view, FUR, False, tail, 3)
        pygame.draw.ellipse(view, FUR, (x - 12, y - 16, 24, 11))
        head = x + 11 * way
        pygame.draw.circle(view, FUR, (head, y - 18), 6)
        for ear in (-1, 1):
            pygame.draw.polygon(view, FUR, [(head + 5 * ear, y - 27), (head + 6 * ear, y - 20), (head + ear, y - 23)])
            pygame.draw.rect(view, DARK, (head + 2 * way + 2 * ear, y - 19, 1, 1))
        pygame.draw.circle(view, PALE, (head + 3 * way, y - 15), 2)
        large = pygame.transform.scale_by(view, TIMES)
        large.blit(self.font.render(f"moths: {game.caught}", True, PALE), (12, HEIGHT * TIMES - 28))
        return large


def player(session: Session, stage: Stage) -> Iterator[Collection[str]]:
    """What is pressed or was tapped, frame by frame, until the player leaves."""
    controls, prompts = Controls(KEYS), cycle(session.world.manifest.prompts or [session.prompt])
    while stage.is_open:
        if any(event.type == pygame.KEYDOWN and event.key == pygame.K_RETURN for event in stage.events(controls)):
            session.stop_async()  # another channel: the one moment that waits, for the tick in work to end
            session.restart(prompt=next(prompts))
        yield controls.read().actions


def main(given: Options) -> None:
    session, game, size = Session(World.open(given.world), seed=given.seed), Game(), (WIDTH * TIMES, HEIGHT * TIMES)
    keys = (game.hunt() for _ in range(given.ticks))
    with Stage("worldloop · cat and moths", size, GAME_HZ, window=not given.headless, video=given.video) as stage:
        for picture in play(session, game, keys if given.headless else player(session, stage)):
            stage.clock.wait()
            stage.show(picture)
    session.stop_async()


if __name__ == "__main__":
    run(main, __doc__, ticks=600)

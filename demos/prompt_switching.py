"""Turn a world into another while it runs: every suggested prompt in turn, or the one whose number key you press.

python -m demos.prompt_switching [WORLD]                                in a window; 1 … 9 choose a prompt
python -m demos.prompt_switching --headless --ticks 300 --video F.mp4   a prompt every 75 ticks, held: the first action
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from runtime.presenters import VideoFile, enlarge
from runtime.session import Session
from runtime.world import DEFAULT_WORLD, World, shipped_worlds

HELD_TICKS = 75  # how long a prompt stays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default=DEFAULT_WORLD if DEFAULT_WORLD in shipped_worlds() else "mock")
    parser.add_argument("--headless", action="store_true", help="no window")
    parser.add_argument("--ticks", type=int, default=300)
    parser.add_argument("--video", type=Path, help="write what is seen")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    session = Session(World.open(arguments.world), seed=arguments.seed)
    with VideoFile(arguments.video, session.world.manifest.tick_hz) if arguments.video else nullcontext() as video:
        for frame in headless(session, arguments.ticks) if arguments.headless else windowed(session):
            if video is not None:
                video.show(frame)


def headless(session: Session, ticks: int) -> Iterator[np.ndarray]:
    """The suggested prompts one after the other, the first action held."""
    prompts = session.world.manifest.prompts or (session.prompt,)
    held = session.world.manifest.action_names[:1]
    for tick in range(ticks):
        if tick % HELD_TICKS == 0:
            session.set_prompt(prompts[tick // HELD_TICKS % len(prompts)])
            print(f"tick {tick}: {session.prompt}")
        yield session.tick(held)


def windowed(session: Session) -> Iterator[np.ndarray]:
    """Number keys choose the prompt; the world's own keys play."""
    import pygame

    manifest = session.world.manifest
    pygame.init()
    times = max(1, 640 // manifest.width)
    screen = pygame.display.set_mode((manifest.width * times, manifest.height * times))
    names = {pygame.key.key_code(key): action.name for action in manifest.actions for key in action.keys}
    clock = pygame.time.Clock()
    while True:
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                return
            if event.type == pygame.KEYDOWN and 0 <= event.key - pygame.K_1 < len(manifest.prompts):
                session.set_prompt(manifest.prompts[event.key - pygame.K_1])
        pressed = pygame.key.get_pressed()
        frame = session.tick({name for key, name in names.items() if pressed[key]})
        screen.blit(pygame.surfarray.make_surface(enlarge(frame, times).swapaxes(0, 1)), (0, 0))
        pygame.display.set_caption(session.prompt)
        pygame.display.flip()
        clock.tick(manifest.tick_hz)
        yield frame


if __name__ == "__main__":
    main()

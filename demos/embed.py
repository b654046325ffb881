"""Host a world in a loop of your own: you decide when a tick happens, and what is done with its frame.

python -m demos.embed [WORLD] [PICTURE]     writes eight moments of a short drive as one picture
"""

from __future__ import annotations

import sys

import numpy as np
import pygame

from worldloop import Session, World, as_surface

world = World.open(sys.argv[1] if len(sys.argv) > 1 else "mock")
session = Session(world, seed=7)
go, *_ = [name for name in ("gas", "forward", *world.manifest.action_names) if name in world.manifest.action_names]

moments = []
for tick in range(160):
    if tick == 80:
        saved = session.snapshot()  # all of the session, as bytes
        session.set_prompt(world.manifest.prompts[-1])  # the next frame turns to the new text
    frame = session.tick({go})  # uint8 [height, width, 3]
    if tick % 20 == 19:
        moments.append(frame)

session.restore(saved)  # tick 80 again, with the old prompt
assert session.tick_number == 80
pygame.image.save(as_surface(np.concatenate(moments, axis=1)), sys.argv[2] if len(sys.argv) > 2 else "embed.png")

"""The real environment beside the world, under the same keys. Needs the train extra."""

from __future__ import annotations

import numpy as np

from runtime.errors import UsageError
from runtime.loop import Companion
from runtime.world import World


def open_environment(world: World, seed: int) -> Companion:
    """A function from pressed actions to the environment's next picture. After an episode comes another."""
    from worldmodel.train.envs import make_adapter_for

    manifest = world.manifest
    if manifest.adapter is None:
        raise UsageError(f"--compare: world {manifest.name!r} names no real environment")
    adapter = make_adapter_for(manifest.adapter, manifest.width, manifest.environment)
    if missing := sorted(set(manifest.game_actions) - set(adapter.actions)):
        raise UsageError(
            f"--compare: {adapter.env_id} has no action {missing[0]!r}; it has: {', '.join(adapter.actions)}"
        )
    adapter.reset(seed)
    episodes = 1

    def step(actions: frozenset[str]) -> np.ndarray:
        nonlocal episodes
        frame, done = adapter.step(np.array([name in actions for name in adapter.actions]))
        if done:
            frame = adapter.reset(seed + episodes)
            episodes += 1
        return frame

    return step

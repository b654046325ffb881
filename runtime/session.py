"""A session: one world being played. It alone keeps the latest state; everything below it is a pure function.

session = Session(World.open("racer"), seed=7)
frame = session.tick({"gas", "left"})  # uint8 [height, width, 3]
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from runtime import snapshot
from runtime.backends import Backend, load_backend
from runtime.backends.graphs import aligned_zeros
from runtime.errors import UsageError
from runtime.noise import tick_noise
from runtime.world import State, World


class Session:
    """One player. Equal seed, start, prompts and actions give equal frames, byte for byte, on one machine and backend.

    tick_number: ticks since the start. prompt: the text that the world follows now. last_action: of the latest tick.
    """

    def __init__(
        self,
        world: World,
        *,
        backend: str | Backend = "auto",
        seed: int = 0,
        start: str | None = None,
        prompt: str | None = None,
        threads: int | None = None,
        precision: str = "auto",
    ) -> None:
        self.world = world
        self.backend = (
            load_backend(world, backend, threads=threads, precision=precision) if isinstance(backend, str) else backend
        )
        self.seed, self.start = seed, start
        self.restart(prompt=prompt)

    def restart(self, *, seed: int | None = None, start: str | None = None, prompt: str | None = None) -> None:
        """Begin again at tick 0, with the seed and start of this session and the start's prompt, if none is given."""
        seed = self.seed if seed is None else seed
        if not 0 <= seed < 1 << 63:
            raise UsageError(f"the seed must be from 0 to 2^63 - 1, got {seed}")
        start = self.start if start is None else start
        manifest = self.world.manifest
        chosen = manifest.start(start)
        text = prompt or (chosen.prompt if chosen else manifest.default_prompt)
        embedding = self.backend.embed(text)
        state = {name: aligned_zeros(spec.shape, spec.dtype) for name, spec in manifest.state.items()}
        for name, tensor in self.world.start_state(start).items():
            state[name][...] = tensor
        self.seed, self.start, self.prompt, self.tick_number = seed, start, text, 0
        self.last_action: frozenset[str] = frozenset()
        self._embedding = embedding
        self._state = self.backend.recache(state, embedding)
        self._spare: State = {}

    def tick(self, actions: Collection[str] = ()) -> np.ndarray:
        """The next frame, uint8 [height, width, 3], a new array. actions: names of what is pressed, any order."""
        action = self.world.action(actions)
        noise = tick_noise(self.seed, self.tick_number, (1, *self.world.manifest.noise))
        before = self._state
        frame, self._state = self.backend.tick(before, action, self._embedding, noise, self._spare)
        # The arrays of the state before are free now, except those that the new state shares.
        self._spare = {name: array for name, array in before.items() if self._state[name] is not array}
        self.tick_number += 1
        self.last_action = frozenset(actions)
        return frame[0]

    def peek(self) -> State:
        """The latest state's arrays, to look at; they are overwritten by later ticks."""
        return dict(self._state)

    def set_prompt(self, text: str) -> None:
        """Turn the world towards another text, from the next tick on."""
        embedding = self.backend.embed(text)
        self._state = self.backend.recache(self._state, embedding)
        self._embedding, self.prompt = embedding, text

    def snapshot(self) -> bytes:
        """All of the session, to go on from later: the same actions then give the same frames."""
        about = snapshot.About(self.world.hash, self.seed, self.tick_number, self.start, self.prompt)
        return snapshot.pack(about, {**self._state, snapshot.EMBEDDING: self._embedding})

    def restore(self, data: bytes) -> None:
        """Go on from a snapshot of this world. Whole or not at all: after an error the session is as it was."""
        about, arrays = snapshot.unpack(data, self.world)
        embedding = arrays.pop(snapshot.EMBEDDING)
        state = {name: aligned_zeros(array.shape, array.dtype) for name, array in arrays.items()}
        for name, array in arrays.items():
            state[name][...] = array
        self.seed, self.tick_number, self.start, self.prompt = about.seed, about.tick, about.start, about.prompt
        self._embedding, self._state, self._spare = embedding, state, {}
        self.last_action = frozenset()

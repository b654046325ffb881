"""What evaluation needs of a game, real or generated: begin somewhere, tick, be told another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from worldmodel.begin import begin, context_frames
from worldmodel.codec.small import to_picture
from worldmodel.prompt.encoder import PromptEncoder
from worldmodel.tick import State, World, recache, tick
from worldmodel.train.codec import load_codec
from worldmodel.train.envs import Adapter
from worldmodel.train.frames import as_input
from worldmodel.train.plan import read_plan
from worldmodel.train.run import load_weights

Frames = NDArray[np.uint8]  # [players, height, width, 3]
Held = NDArray[np.bool_]  # [players, actions]


class Game(Protocol):
    """Some players, each in a game of its own."""

    def tick(self, held: Held) -> Frames:
        """Live one tick with these keys held."""

    def say(self, prompts: Sequence[str]) -> None:
        """Turn each player's world towards another text."""


class Playable(Protocol):
    """A world that can go on from real frames."""

    actions: tuple[str, ...]
    context: int  # frames that `begin` wants
    prompted: bool  # whether it listens to prompts; figures about them are left out otherwise

    def begin(self, frames: NDArray[np.uint8], actions: NDArray[np.bool_], prompts: Sequence[str], seed: int) -> Game:
        """Go on after the last of `frames`.

        frames: uint8 [players, context, height, width, 3]. actions: bool [players, context, actions], what led to each.
        """

    def through_codec(self, frames: Frames) -> Frames:
        """Encode and decode: the best that this world could show."""


class RealGame:
    """The environment itself, one adapter per player."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = adapters

    def tick(self, held: Held) -> Frames:
        return np.stack([adapter.step(keys)[0] for adapter, keys in zip(self.adapters, held, strict=True)])

    def say(self, prompts: Sequence[str]) -> None:
        raise NotImplementedError("nobody can talk to the real environment")


class TorchWorld:
    """A run folder's world (spec.json, codec.safetensors, world.safetensors), on torch."""

    prompted = True

    def __init__(self, run: Path, autocast: bool = True) -> None:
        self.spec = read_plan(run)
        self._world = World(self.spec)
        self._world.codec = load_codec(self.spec, run)
        load_weights(self._world.generator, run / "world.safetensors", code=self._world.codec.code)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._world.to(self.device).requires_grad_(False).eval()
        self._autocast = autocast
        self._encoder = PromptEncoder.load()
        self.actions = self.spec.actions
        self.context = context_frames(self.spec)

    @torch.no_grad()
    def begin(
        self, frames: NDArray[np.uint8], actions: NDArray[np.bool_], prompts: Sequence[str], seed: int
    ) -> TorchGame:
        shown, led = (torch.from_numpy(array).to(self.device) for array in (frames, actions))
        with self.precision():
            state = begin(self._world, shown, led.float())
        game = TorchGame(self, state, torch.empty(0), torch.Generator(self.device).manual_seed(seed))
        game.say(prompts)
        return game

    @torch.no_grad()
    def through_codec(self, frames: Frames) -> Frames:
        made = []
        with self.precision():
            for part in torch.from_numpy(frames).split(64):
                codec = self._world.codec
                made.append(to_picture(codec.decode(codec.encode(as_input(part.to(self.device))))).cpu())
        return torch.cat(made).numpy()

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompt embeddings, [prompts, tokens, dim]."""
        return self._encoder.encode(list(prompts)).to(self.device)

    def precision(self) -> torch.autocast:
        """bfloat16 where training had it, or float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)

    @property
    def world(self) -> World:
        """The weights."""
        return self._world


@dataclass
class TorchGame:
    """A `TorchWorld` being played."""

    playable: TorchWorld
    state: State
    prompt: torch.Tensor
    generator: torch.Generator

    @torch.no_grad()
    def tick(self, held: Held) -> Frames:
        spec, device = self.playable.spec, self.playable.device
        shape = (len(held), spec.schedule.noises, *spec.latent_shape)
        noise = torch.randn(shape, generator=self.generator, device=device)
        action = torch.from_numpy(held).to(device).float()
        with self.playable.precision():
            frame, self.state = tick(self.playable.world, self.state, action, self.prompt, noise)
        return frame.cpu().numpy()

    @torch.no_grad()
    def say(self, prompts: Sequence[str]) -> None:
        self.prompt = self.playable.embed(prompts)
        with self.playable.precision():
            self.state = recache(self.playable.world, self.state, self.prompt)

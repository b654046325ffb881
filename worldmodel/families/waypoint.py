"""Waypoint-1 (Overworld; weights Apache-2.0): a rectified-flow world, one picture per tick, steered by keys and mouse.

Written from published facts; the public engine's code is GPL-3 and none of it is here. A frame is denoised with the
cache frozen; a last pass at noise level 0 gives the keys and values that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.families.waypoint_ae import WaypointAe, WaypointAeSpec
from worldmodel.families.waypoint_spec import WaypointSpec
from worldmodel.families.waypoint_transformer import KeyValue, Memory, Told, WaypointTransformer

State = dict[str, Tensor]


class WaypointWorld(nn.Module):
    """Plays Waypoint-1: `frame, state' = tick(state, action, prompt, noise)`."""

    def __init__(self, spec: WaypointSpec, ae: WaypointAeSpec) -> None:
        super().__init__()
        self.model, self.ae = WaypointTransformer(spec), WaypointAe(ae)

    def forward(self, state: State, action: Tensor, prompt: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """Make the next picture.

        action: [batch, controls]: mouse x, mouse y, buttons (0 or 1), scroll wheel (−1, 0, 1). prompt: [batch, rows,
        prompt_embedding_dim]. noise: [batch, 1, channels, rows, columns]. Returns uint8 [batch, height, width, 3].
        """
        told = self.model.told(action, prompt)
        latent = [step.after for step in steps(self.model, state, noise[:, 0], told)][-1]
        return self.ae.to_bytes(self.ae.decode(latent)), commit(self.model, state, latent, told)

    def empty_state(self, batch: int) -> State:
        return empty_state(self.model, batch)

    def start(self, pictures: Tensor, actions: Tensor, prompt: Tensor) -> State:
        """The state after real pictures, uint8 [batch, frames, height, width, 3], and the actions of each."""
        state = self.empty_state(pictures.shape[0])
        for frame in range(pictures.shape[1]):
            latent = self.ae.encode(pictures[:, frame])
            state = commit(self.model, state, latent, self.model.told(actions[:, frame], prompt))
        return state


def empty_state(model: WaypointTransformer, batch: int) -> State:
    """Nothing seen yet.

    `frame` int64 [batch]: number of the next frame. `position.N` int64 [batch, slots]: the frame in each slot of layer
    N's ring, −1 while empty. `kv.N` [batch, 2, slots, tokens, kv_heads, head_dim]: keys, turned, and values.
    """
    spec, like = model.spec, model.unpatchify.weight
    state = {"frame": torch.zeros(batch, dtype=torch.int64, device=like.device)}
    for layer in range(spec.n_layers):
        slots = spec.slots(layer)
        state[f"position.{layer}"] = torch.full((batch, slots), -1, device=like.device)
        state[f"kv.{layer}"] = like.new_zeros(batch, 2, slots, spec.tokens, spec.n_kv_heads, spec.head_dim)
    return state


class Step(NamedTuple):
    """One denoising step; every tensor [batch, channels, rows, columns]."""

    x: Tensor
    velocity: Tensor
    after: Tensor  # what the next step starts from


def steps(model: WaypointTransformer, state: State, noise: Tensor, told: Told) -> Iterator[Step]:
    """The denoising steps (Euler) of the next latent, from noise [batch, channels, rows, columns], the cache frozen."""
    sigmas, memory, x = model.spec.sigmas, memories(model.spec, state), noise
    for (sigma, next_sigma), level in zip(pairwise(sigmas), model.levels(sigmas[:-1]), strict=True):
        velocity, _ = model(x, state["frame"], level, told, memory)
        after = x + (next_sigma - sigma) * velocity
        yield Step(x, velocity, after)
        x = after


def commit(model: WaypointTransformer, state: State, latent: Tensor, told: Told) -> State:
    """The state after a clean latent [batch, channels, rows, columns]: one more pass, whose keys are kept."""
    return keep(model.spec, state, clean_keys(model, state, latent, told))


def clean_keys(model: WaypointTransformer, state: State, latent: Tensor, told: Told) -> list[KeyValue]:
    """The next frame's keys and values as they are to be remembered, per layer."""
    (clean,) = model.levels((model.spec.commit_sigma,))
    return model(latent, state["frame"], clean, told, memories(model.spec, state))[1]


def memories(spec: WaypointSpec, state: State) -> list[Memory]:
    """What the next frame may read, per layer."""
    return [Memory(state[f"kv.{layer}"], visible(spec, state, layer)) for layer in range(spec.n_layers)]


def visible(spec: WaypointSpec, state: State, layer: int) -> Tensor:
    """Slots that the next frame may read, bool [batch, slots]: all filled ones but the one it will take itself."""
    return (state[f"position.{layer}"] >= 0) & ~_taken(spec, state["frame"], layer)


def keep(spec: WaypointSpec, state: State, keys: list[KeyValue]) -> State:
    """Put a clean frame's keys and values into every ring that keeps frames of its number."""
    frame, after = state["frame"], {"frame": state["frame"] + 1}
    for layer, (k, v) in enumerate(keys):
        taken = _taken(spec, frame, layer)
        now = torch.stack([k, v], dim=1).unsqueeze(2)  # [batch, 2, 1, tokens, kv_heads, head_dim]
        after[f"kv.{layer}"] = torch.where(taken[:, None, :, None, None, None], now, state[f"kv.{layer}"])
        after[f"position.{layer}"] = torch.where(taken, frame.unsqueeze(1), state[f"position.{layer}"])
    return after


def _taken(spec: WaypointSpec, frame: Tensor, layer: int) -> Tensor:
    """The slot that a frame takes in a layer's ring, as bool [batch, slots]; none if the layer does not keep it."""
    dilation, slots = spec.dilation(layer), spec.slots(layer)
    slot = torch.arange(slots, device=frame.device)
    at = (frame // dilation % slots).unsqueeze(1)
    return (slot == at) & (frame % dilation == 0).unsqueeze(1)

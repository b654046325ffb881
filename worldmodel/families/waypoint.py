"""Waypoint-1 (Overworld; weights Apache-2.0): a rectified-flow world, one picture per tick, steered by keys and mouse.

Written from published facts; the public engine's code is GPL-3 and none of it is here. A frame is denoised with the
cache frozen; a last pass at noise level 0 gives the keys and values that are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from string import ascii_lowercase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.condition.buttons import Button
from worldmodel.condition.start_picture import ClipVision, as_bytes
from worldmodel.errors import CheckpointError, SpecError
from worldmodel.families import waypoint_ae
from worldmodel.families.family import About, Shapes, State, StateShapes, zero_state
from worldmodel.families.waypoint_ae import WaypointAe, WaypointAeSpec
from worldmodel.families.waypoint_spec import WaypointSpec, spec_of
from worldmodel.families.waypoint_transformer import KeyValue, Memory, Told, WaypointTransformer


@dataclass(frozen=True)
class WaypointWorldSpec:
    """Generator and autoencoder."""

    model: WaypointSpec = field(default_factory=WaypointSpec)
    ae: WaypointAeSpec = field(default_factory=WaypointAeSpec)

    def __post_init__(self) -> None:
        if self.model.channels != self.ae.latent_channels:
            raise SpecError(
                f"waypoint: the generator's latents have {self.model.channels} channels, "
                f"the autoencoder's {self.ae.latent_channels}: they are not of one world"
            )


def matches(shapes: Shapes, config: Mapping[str, Any]) -> WaypointWorldSpec | None:
    """The spec from the keys and shapes of the transformer's file and the autoencoder's together, or None."""
    needed = ("patchify.weight", "unpatchify.weight", "out_norm.fc.weight", "transformer.blocks.0.attn.k_proj.weight")
    if any(name not in shapes for name in needed):
        return None
    return WaypointWorldSpec(spec_of(shapes, config), waypoint_ae.spec_of(shapes) or WaypointAeSpec())


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public names with `model.` or `ae.` in front; the autoencoder's convolutions multiplied out."""
    _refuse_unequal_copies(weights)
    of_ae = {name: tensor for name, tensor in weights.items() if name.startswith(("encoder.", "decoder."))}
    of_model = {f"model.{name}": tensor for name, tensor in weights.items() if name not in of_ae}
    return of_model | {f"ae.{name}": tensor for name, tensor in waypoint_ae.fuse(of_ae).items()}


def build(spec: WaypointWorldSpec) -> WaypointWorld:
    return WaypointWorld(spec)


def _refuse_unequal_copies(weights: Mapping[str, Tensor]) -> None:
    """With per-layer biases the modulation's matrices are one set, written under every layer's name."""
    if "transformer.blocks.0.cond_head.bias_in" not in weights:
        return
    for name, tensor in weights.items():
        found = re.fullmatch(r"transformer\.blocks\.\d+\.(cond_head\.cond_proj\..*)", name)
        first = weights.get(f"transformer.blocks.0.{found[1]}") if found else None
        if first is not None and not tensor.is_meta and not torch.equal(tensor, first):
            raise CheckpointError(f"'{name}' must equal block 0's, all layers share it: the checkpoint is damaged")


class WaypointWorld(nn.Module):
    """Plays Waypoint-1: `frame, state' = tick(state, action, prompt, noise)`."""

    def __init__(self, spec: WaypointWorldSpec) -> None:
        super().__init__()
        self.model, self.ae = WaypointTransformer(spec.model), WaypointAe(spec.ae)

    @property
    def about(self) -> About:
        spec, ae = self.model.spec, self.ae.spec
        return About(
            title="Waypoint-1",
            tick_hz=60.0,
            height=ae.height,
            width=ae.width,
            buttons=_buttons(spec.n_buttons),
            action_dim=spec.controls,
            noise_shape=(1, *spec.latent_shape),
            prompt_shape=(PROMPT_ROWS, spec.prompt_embedding_dim),
        )

    def state_shapes(self) -> StateShapes:
        """`frame`: number of the next frame. `kv.N` [1, 2, slots, tokens, kv_heads, head_dim]: layer N's ring of keys,
        turned, and values. Which frame is in a slot follows from the number."""
        return state_shapes(self.model)

    def forward(self, state: State, action: Tensor, prompt: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """Make the next picture.

        action: [batch, controls]: mouse x, mouse y, buttons (0 or 1), scroll wheel (−1, 0, 1). prompt: [batch, rows,
        prompt_embedding_dim]. noise: [batch, 1, channels, rows, columns]. Returns uint8 [batch, height, width, 3].
        """
        told = self.model.told(action, prompt)
        latent = [step.after for step in steps(self.model, state, noise[:, 0], told)][-1]
        return self.ae.to_bytes(self.ae.decode(latent)), commit(self.model, state, latent, told)

    def recache(self, state: State, prompt: Tensor) -> State:
        """The public engine renews nothing either: a new prompt is felt through the cross-attention alone."""
        return state

    def start_from(self, picture: Tensor, encoder: ClipVision | None) -> State:
        """The state after the picture, see `Playable`."""
        like = self.model.unpatchify.weight
        still, nothing = like.new_zeros(1, 1, self.about.action_dim), like.new_zeros(1, *self.about.prompt_shape)
        return self.start(as_bytes(picture)[:, None], still, nothing)

    def start(self, pictures: Tensor, actions: Tensor, prompt: Tensor) -> State:
        """The state after real pictures, uint8 [batch, frames, height, width, 3], and the actions of each."""
        state = zero_state(self, len(pictures), pictures.device)
        for frame in range(pictures.shape[1]):
            latent = self.ae.encode(pictures[:, frame])
            state = commit(self.model, state, latent, self.model.told(actions[:, frame], prompt))
        return state


def state_shapes(model: WaypointTransformer) -> StateShapes:
    """See WaypointWorld.state_shapes."""
    spec, dtype = model.spec, model.unpatchify.weight.dtype
    shapes: StateShapes = {"frame": ((1,), torch.int64)}
    for layer in range(spec.n_layers):
        shape = (1, 2, spec.slots(layer), spec.tokens, spec.n_kv_heads, spec.head_dim)
        shapes[f"kv.{layer}"] = (shape, dtype)
    return shapes


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
    return [Memory(state[f"kv.{layer}"], visible(spec, state["frame"], layer)) for layer in range(spec.n_layers)]


def visible(spec: WaypointSpec, frame: Tensor, layer: int) -> Tensor:
    """Slots of a layer's ring that a frame may read, bool [batch, slots]: the filled ones but the one it will take."""
    return filled(spec, frame, layer) & ~_taken(spec, frame, layer)


def filled(spec: WaypointSpec, frame: Tensor, layer: int) -> Tensor:
    """Slots of a layer's ring that frames before this one have taken, bool [batch, slots]."""
    first = torch.arange(spec.slots(layer), device=frame.device) * spec.dilation(layer)  # to take each slot
    return first < frame.unsqueeze(1)


def keep(spec: WaypointSpec, state: State, keys: list[KeyValue]) -> State:
    """Put a clean frame's keys and values into every ring that keeps frames of its number."""
    frame, after = state["frame"], {"frame": state["frame"] + 1}
    for layer, (k, v) in enumerate(keys):
        taken = _taken(spec, frame, layer)[:, None, :, None, None, None]
        now = torch.stack([k, v], dim=1).unsqueeze(2)  # [batch, 2, 1, tokens, kv_heads, head_dim]
        after[f"kv.{layer}"] = torch.where(taken, now, state[f"kv.{layer}"])
    return after


def _taken(spec: WaypointSpec, frame: Tensor, layer: int) -> Tensor:
    """The slot that a frame takes in a layer's ring, as bool [batch, slots]; none if the layer does not keep it."""
    dilation, slots = spec.dilation(layer), spec.slots(layer)
    slot = torch.arange(slots, device=frame.device)
    at = (frame // dilation % slots).unsqueeze(1)
    return (slot == at) & (frame % dilation == 0).unsqueeze(1)


def _buttons(n_buttons: int) -> tuple[Button, ...]:
    """The keys one plays with. 256 buttons are taken for Windows' virtual key codes, which no public text confirms."""
    look = [Button("look_left", ("left",), 0, -LOOK), Button("look_right", ("right",), 0, LOOK)]
    look += [Button("look_up", ("up",), 1, -LOOK), Button("look_down", ("down",), 1, LOOK)]
    if n_buttons < 256:
        return (*look, *(Button(f"button_{code}", (), code + 2) for code in range(min(n_buttons, 60))))
    return (*look, *(Button(name, keys, code + 2) for name, keys, code in KEYBOARD))


LOOK = 0.5  # mouse velocity while a look button is held
PROMPT_ROWS = 512
KEYBOARD = (
    ("mouse_left", ("mouse:left", "return"), 0x01),
    ("mouse_right", ("mouse:right", "right ctrl"), 0x02),
    ("shift", ("left shift",), 0x10),
    ("ctrl", ("left ctrl",), 0x11),
    ("space", ("space",), 0x20),
    *((f"key_{letter}", (letter,) if letter not in "hpr" else (), ord(letter.upper())) for letter in ascii_lowercase),
)

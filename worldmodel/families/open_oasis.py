"""Open-Oasis (github.com/etched-ai/open-oasis, MIT): a block-building world by diffusion forcing, one picture per tick.

The state is the window of clean latents and the actions that led to them; nothing else is remembered. Weights are named
as in the two public files, with `dit.` and `vae.` in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.condition.buttons import Button
from worldmodel.condition.start_picture import ClipVision, as_bytes
from worldmodel.errors import SpecError
from worldmodel.families.family import About, Shapes, State, StateShapes, zero_state
from worldmodel.families.open_oasis_dit import Dit, DitSpec, KeyValue
from worldmodel.families.open_oasis_vae import VitVae, VitVaeSpec

# The 25 numbers of an action, in the public order, and the keys that press them. The camera has two in [−1, 1], with
# buttons of their own.
ACTIONS: dict[str, tuple[str, ...]] = {
    "inventory": ("i",), "menu": (), "hotbar_1": ("1",), "hotbar_2": ("2",), "hotbar_3": ("3",), "hotbar_4": ("4",),
    "hotbar_5": ("5",), "hotbar_6": ("6",), "hotbar_7": ("7",), "hotbar_8": ("8",), "hotbar_9": ("9",),
    "forward": ("w",), "back": ("s",), "left": ("a",), "right": ("d",), "camera_x": (), "camera_y": (),
    "jump": ("space",), "sneak": ("left shift",), "sprint": ("left ctrl",), "swap_hands": ("f",), "attack": ("return",),
    "use": ("e",), "pick": ("c",), "drop": ("q",),
}  # fmt: skip
LOOK = 0.25  # of the camera's full speed, while a look button is held

VAE_HEAD_DIM = 64  # of the published autoencoder


def even_levels(steps: int, num_levels: int = 1000) -> tuple[int, ...]:
    """`steps` evenly spaced noise levels, truncated to whole numbers, and −1, which stands for clean."""
    return tuple(reversed(torch.linspace(-1, num_levels - 1, steps + 1, device="cpu").int().tolist()))


@dataclass(frozen=True)
class OpenOasisSpec:
    """Generator, autoencoder and sampler."""

    dit: DitSpec = field(default_factory=DitSpec)
    vae: VitVaeSpec = field(default_factory=VitVaeSpec)
    num_levels: int = 1000  # noise levels that training knew
    start: float = -3.0  # of the sigmoid schedule
    end: float = 3.0
    tau: float = 1.0
    levels: tuple[int, ...] = even_levels(10)  # of the denoising steps, falling; the last is −1, clean
    context_level: int = 14  # the level that clean frames are announced at; no noise is added to them
    noise_abs_max: float = 20.0

    def __post_init__(self) -> None:
        if (
            self.dit.latent_height,
            self.dit.latent_width,
        ) != self.vae.grid or self.dit.in_channels != self.vae.latent_dim:
            raise SpecError("open_oasis: the latents of dit and vae must have the same shape")
        falling = sorted(set(self.levels), reverse=True) == list(self.levels)
        if not falling or len(self.levels) < 2 or self.levels[-1] != -1 or self.levels[0] >= self.num_levels:
            raise SpecError(f"open_oasis.levels must fall from below {self.num_levels} to −1: got {self.levels}")

    def alphas_cumprod(self) -> Tensor:
        """float32 [num_levels]: how much of the clean latent's variance is left at each level."""
        u = torch.arange(self.num_levels + 1, dtype=torch.float64, device="cpu") / self.num_levels
        low, high = torch.tensor([self.start, self.end], dtype=torch.float64, device="cpu").div(self.tau).sigmoid()
        curve = (high - ((u * (self.end - self.start) + self.start) / self.tau).sigmoid()) / (high - low)
        curve = curve / curve[0]
        betas = (1 - curve[1:] / curve[:-1]).clamp(0, 0.999).float()
        return (1 - betas).cumprod(0)


def matches(shapes: Shapes, config: Mapping[str, Any]) -> OpenOasisSpec | None:
    """The spec from the keys and shapes of the two public files (`oasis500m`, `vit-l-20`) together, or None.

    Picture size, window and the autoencoder's head size are in no shape: they have the published values.
    """
    at = {_renamed(name): shape for name, shape in shapes.items()}
    if "dit.blocks.0.s_attn.rotary_emb.freqs" not in at or "dit.external_cond.weight" not in at:
        return None
    return OpenOasisSpec(_dit_spec(at), _vae_spec(at) if "vae.predictor.weight" in at else VitVaeSpec())


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public names with `dit.` or `vae.` in front. The rotary frequencies, which all blocks share, stay in block 0."""
    renamed = {_renamed(name): tensor for name, tensor in weights.items()}
    repeated = re.compile(r"dit\.blocks\.(?!0\.)\d+\.[st]_attn\.rotary_emb\.freqs")
    return {name: tensor for name, tensor in renamed.items() if not repeated.fullmatch(name)}


def build(spec: OpenOasisSpec) -> OpenOasisWorld:
    return OpenOasisWorld(spec)


def _renamed(name: str) -> str:
    if name.startswith(("dit.", "vae.")):
        return name
    of_dit = name.startswith(("x_embedder.", "t_embedder.", "external_cond.", "blocks.", "final_layer."))
    return f"dit.{name}" if of_dit else f"vae.{name}"


def _dit_spec(at: Shapes) -> DitSpec:
    hidden, channels, patch, _ = at["dit.x_embedder.proj.weight"]
    return DitSpec(
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=_depth(at, r"dit\.blocks\.(\d+)\."),
        num_heads=hidden // (4 * at["dit.blocks.0.s_attn.rotary_emb.freqs"][0]),
        mlp_ratio=at["dit.blocks.0.s_mlp.fc1.weight"][0] / hidden,
        external_cond_dim=at["dit.external_cond.weight"][1],
    )


def _vae_spec(at: Shapes) -> VitVaeSpec:
    enc_dim, _, pixels, _ = at["vae.patch_embed.proj.weight"]
    dec_dim, latent_dim = at["vae.post_quant_conv.weight"]
    return VitVaeSpec(
        latent_dim=latent_dim,
        input_height=pixels * DitSpec().latent_height,
        input_width=pixels * DitSpec().latent_width,
        patch_size=pixels,
        enc_dim=enc_dim,
        enc_depth=_depth(at, r"vae\.encoder\.(\d+)\."),
        enc_heads=max(1, enc_dim // VAE_HEAD_DIM),
        dec_dim=dec_dim,
        dec_depth=_depth(at, r"vae\.decoder\.(\d+)\."),
        dec_heads=max(1, dec_dim // VAE_HEAD_DIM),
    )


def _depth(shapes: Shapes, numbered: str) -> int:
    return 1 + max(int(found[1]) for name in shapes if (found := re.match(numbered, name)))


class OpenOasisWorld(nn.Module):
    """Plays Open-Oasis: `frame, state' = tick(state, action, prompt, noise)`."""

    def __init__(self, spec: OpenOasisSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dit, self.vae = Dit(spec.dit), VitVae(spec.vae)
        self.alphas = spec.alphas_cumprod().tolist()

    @property
    def about(self) -> About:
        dit, vae = self.spec.dit, self.spec.vae
        return About(
            title="Open-Oasis",
            tick_hz=20.0,
            height=vae.input_height,
            width=vae.input_width,
            buttons=_buttons(dit.external_cond_dim),
            action_dim=dit.external_cond_dim,
            noise_shape=(1, dit.in_channels, dit.latent_height, dit.latent_width),
            prompt_shape=(1, 1),
        )

    def state_shapes(self) -> StateShapes:
        """`latents` and `actions` of the latest clean frames, the newest last; `frame` counts all frames so far, and
        slots before the first are empty."""
        dit, window = self.spec.dit, self.spec.dit.max_frames - 1
        dtype = self.dit.external_cond.weight.dtype
        return {
            "latents": ((1, window, dit.in_channels, dit.latent_height, dit.latent_width), dtype),
            "actions": ((1, window, dit.external_cond_dim), dtype),
            "frame": ((1,), torch.int64),
        }

    def start(self, pictures: Tensor, actions: Tensor) -> State:
        """The state after real pictures.

        pictures: uint8 [batch, frames, height, width, 3]. actions: [batch, frames, action_dim], what led to each.
        """
        shown = pictures.movedim(-1, -3).to(self.dit.external_cond.weight) / 127.5 - 1
        latents = self.vae.encode(shown.flatten(0, 1)).unflatten(0, shown.shape[:2])
        state = zero_state(self, len(pictures), pictures.device)
        for frame in range(pictures.shape[1]):
            state = remember(state, latents[:, frame], actions[:, frame])
        return state

    def start_from(self, picture: Tensor, encoder: ClipVision | None) -> State:
        """The state after the picture, see `Playable`."""
        still = torch.zeros(1, 1, self.spec.dit.external_cond_dim, dtype=self.dit.external_cond.weight.dtype)
        return self.start(as_bytes(picture)[:, None], still)

    def forward(self, state: State, action: Tensor, prompt: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """Make the next picture.

        action: [batch, action_dim], see ACTIONS. prompt: not used. noise: [batch, 1, channels, rows, columns].
        Returns uint8 [batch, height, width, 3].
        """
        latent = [step.after for step in self.steps(state, action, noise[:, 0])][-1]
        picture = ((self.vae.decode(latent).float() + 1) / 2).clamp(0, 1)
        return (picture * 255).round().to(torch.uint8).movedim(1, -1), remember(state, latent, action)

    def recache(self, state: State, prompt: Tensor) -> State:
        """There is no prompt to renew anything for."""
        return state

    def steps(self, state: State, action: Tensor, noise: Tensor) -> Iterator[Step]:
        """The denoising steps (DDIM, v prediction) of the next latent from noise [batch, channels, rows, columns]."""
        context = self.context(state)
        x = noise.clamp(-self.spec.noise_abs_max, self.spec.noise_abs_max)
        for level, next_level in pairwise(self.spec.levels):
            now = torch.full((len(x), 1), level, device=x.device)
            v, _ = self.dit(x.unsqueeze(1), now, action.unsqueeze(1), context.kept, context.visible)
            v = v[:, 0]
            a, next_a = self.alphas[level], self.alphas[next_level] if next_level >= 0 else 1.0
            clean = a**0.5 * x - (1 - a) ** 0.5 * v
            # From x and the clean latent, not from v: where a is near 0 the two differ in float32.
            noise_in_x = ((1 / a) ** 0.5 * x - clean) / (1 / a - 1) ** 0.5
            x = next_a**0.5 * clean + (1 - next_a) ** 0.5 * noise_in_x
            yield Step(v, clean, x)

    def context(self, state: State) -> Context:
        """One pass over the clean frames; they see each other causally and empty slots see themselves only."""
        window = state["latents"].shape[1]
        slot = torch.arange(window, device=state["frame"].device)
        filled = slot >= window - state["frame"].unsqueeze(1)  # [batch, window]
        sees = (slot <= slot.unsqueeze(1)) & filled.unsqueeze(1) | (slot == slot.unsqueeze(1))
        levels = torch.full_like(state["actions"][..., 0], self.spec.context_level, dtype=torch.int64)
        v, kept = self.dit(state["latents"], levels, state["actions"], (), sees)
        itself = torch.ones_like(filled[:, :1])
        return Context(v, kept, torch.cat([filled, itself], dim=1).unsqueeze(1))


class Context(NamedTuple):
    """What the clean frames of the window give to the new one."""

    v: Tensor  # [batch, window, channels, rows, columns], of no use but for comparison
    kept: list[KeyValue]  # per block
    visible: Tensor  # bool [batch, 1, window + 1], what the new frame may see


class Step(NamedTuple):
    """One denoising step of the new frame; every tensor [batch, channels, rows, columns]."""

    v: Tensor  # of the network
    clean: Tensor  # the latent it stands for
    after: Tensor  # what the next step starts from


def remember(state: State, latent: Tensor, action: Tensor) -> State:
    """Push one clean frame [batch, channels, rows, columns] and its action into the window."""
    return {
        "latents": torch.cat([state["latents"][:, 1:], latent.unsqueeze(1)], dim=1),
        "actions": torch.cat([state["actions"][:, 1:], action.unsqueeze(1)], dim=1),
        "frame": state["frame"] + 1,
    }


def _buttons(action_dim: int) -> tuple[Button, ...]:
    """A button per number of an action, and four to look around."""
    names = tuple(ACTIONS) if action_dim == len(ACTIONS) else tuple(f"action_{number}" for number in range(action_dim))
    pressed = [
        Button(name, ACTIONS.get(name, ()), number)
        for number, name in enumerate(names)
        if not name.startswith("camera_")
    ]
    if action_dim == len(ACTIONS):
        pitch, yaw = names.index("camera_x"), names.index("camera_y")
        pressed += [Button("look_up", ("up",), pitch, -LOOK), Button("look_down", ("down",), pitch, LOOK)]
        pressed += [Button("look_left", ("left",), yaw, -LOOK), Button("look_right", ("right",), yaw, LOOK)]
    return tuple(pressed)

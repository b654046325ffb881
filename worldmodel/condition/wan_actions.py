"""Keyboard and mouse modules with their own caches (GameFactory's design, as in Matrix-Game 2).

One action row belongs to one picture frame; a latent frame is told of the rows of its own and of earlier latent frames.
The mouse joins each token and attends over time at its place in the picture; the keyboard is attended to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from worldmodel.cache.attention import Fresh, Group, Turns, angles, attend, rotate
from worldmodel.errors import SpecError


@dataclass(frozen=True)
class ActionSpec:
    """Sizes of the action modules."""

    layers: tuple[int, ...]  # blocks that have one
    heads: int = 16
    keys: int = 4  # numbers in a keyboard row
    mouse: int = 2  # numbers in a mouse row, 0: no mouse
    embedding: int = 128  # width of an embedded keyboard row
    mouse_dim: int = 1024  # width of the mouse attention, all heads
    keyboard_dim: int = 1024  # width of the keyboard attention, all heads
    turned: int = 8  # numbers of a head that rotate with time
    theta: float = 256.0
    rows_per_frame: int = 4  # picture frames of a latent frame
    window: int = 3  # latent frames whose rows a latent frame is told of
    qk_norm: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        if self.mouse_dim % self.heads or self.keyboard_dim % self.heads:
            raise SpecError(
                f"actions: widths {self.mouse_dim} and {self.keyboard_dim} must divide by {self.heads} heads"
            )

    @property
    def rows(self) -> int:
        """Action rows that one latent frame is told of."""
        return self.rows_per_frame * self.window

    @property
    def steers(self) -> dict[str, tuple[int, ...]]:
        """What one latent frame is told: rows of numbers."""
        mouse: dict[str, tuple[int, ...]] = {"mouse": (self.rows, self.mouse)} if self.mouse else {}
        return mouse | ({"keyboard": (self.rows, self.keys)} if self.keys else {})

    @property
    def stores(self) -> dict[str, tuple[int, int, int, int]]:
        """What a cache keeps, see `WanSpec.stores`; the keyboard is the same for all tokens."""
        keyboard = {"keyboard": (len(self.layers), 1, self.heads, self.keyboard_dim // self.heads)}
        mouse = {"mouse": (len(self.layers), 0, self.heads, self.mouse_dim // self.heads)}
        return (mouse if self.mouse else {}) | (keyboard if self.keys else {})

    def angles(self, positions: Tensor) -> Tensor:
        """Rotation angles of temporal positions […]: float64 […, turned / 2]."""
        return angles(positions, self.turned // 2, self.theta)


def told_rows(rows: Tensor, frames: Tensor, spec: ActionSpec, first_row: int = 0) -> Tensor:
    """The rows that latent frames are told of: frame f those before row 4f, the earliest repeated where there are none.

    rows: [batch, n, numbers], of which the first is row number `first_row`. frames: [frames] int64.
    Returns [batch, frames, told rows, numbers].
    """
    newest = frames[:, None] * spec.rows_per_frame
    index = newest - spec.rows + torch.arange(spec.rows, device=rows.device) - first_row
    return rows[:, index.clamp(0, rows.shape[1] - 1)]


class ActionModule(nn.Module):
    """Adds to the tokens of every frame what mouse and keyboard did."""

    def __init__(self, spec: ActionSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        if spec.mouse:
            width = spec.mouse_dim
            self.mouse_mlp = nn.Sequential(
                nn.Linear(dim + spec.mouse * spec.rows, width),
                nn.GELU("tanh"),
                nn.Linear(width, width),
                nn.LayerNorm(width),
            )
            self.t_qkv = nn.Linear(width, 3 * width, bias=spec.bias)
            self.img_attn_q_norm, self.img_attn_k_norm = (_norm(spec, width) for _ in range(2))
            self.proj_mouse = nn.Linear(width, dim, bias=spec.bias)
        if spec.keys:
            width = spec.keyboard_dim
            self.keyboard_embed = nn.Sequential(
                nn.Linear(spec.keys, spec.embedding), nn.SiLU(), nn.Linear(spec.embedding, spec.embedding)
            )
            self.mouse_attn_q = nn.Linear(dim, width, bias=spec.bias)
            self.keyboard_attn_kv = nn.Linear(spec.embedding * spec.rows, 2 * width, bias=spec.bias)
            self.key_attn_q_norm, self.key_attn_k_norm = (_norm(spec, width) for _ in range(2))
            self.proj_keyboard = nn.Linear(width, dim, bias=spec.bias)

    def forward(
        self,
        tokens: Tensor,
        layer: int,
        groups: tuple[Group, ...],
        own: Turns,
        mouse: Tensor | None,
        keyboard: Tensor | None,
        fresh: Fresh,
    ) -> Tensor:
        """tokens: [batch, F, T, dim]. mouse, keyboard: [batch, F, told rows, numbers]."""
        place = self.spec.layers.index(layer)
        if self.spec.mouse and mouse is not None:
            tokens = tokens + self.steer(tokens, place, groups, own, mouse, fresh)
        if self.spec.keys and keyboard is not None:
            tokens = tokens + self.press(tokens, place, groups, own, keyboard, fresh)
        return tokens

    def steer(
        self, tokens: Tensor, place: int, groups: tuple[Group, ...], own: Turns, mouse: Tensor, fresh: Fresh
    ) -> Tensor:
        """The mouse: attention over time at every place of the picture."""
        size, heads = tokens.shape[2], self.spec.heads
        beside = mouse.flatten(2)[:, :, None].expand(-1, -1, size, -1)
        query, key, value = (
            self.t_qkv(self.mouse_mlp(torch.cat([tokens, beside.to(tokens)], -1)))
            .unflatten(-1, (3, heads, -1))
            .unbind(-3)
        )
        query, key = self.img_attn_q_norm(query), self.img_attn_k_norm(key)
        fresh.keep("mouse", key, value)
        query, rotated, told = rotate(query, own.action), rotate(key, own.action), []
        for group in groups:
            keys, values = _seen(group, "mouse", place, key, rotated, value)
            asked = query[:, group.frames]
            q, k, v = (part.transpose(1, 2).flatten(0, 1).transpose(1, 2) for part in (asked, keys, values))
            mask = group.mask(1)
            mask = None if mask is None else mask.repeat_interleave(size, 0)
            found = nnf.scaled_dot_product_attention(q, k, v, mask)  # [batch · T, H, f, D]
            told.append(found.transpose(1, 2).flatten(2).unflatten(0, (-1, size)).transpose(1, 2))
        return self.proj_mouse(torch.cat(told, 1))

    def press(
        self, tokens: Tensor, place: int, groups: tuple[Group, ...], own: Turns, keyboard: Tensor, fresh: Fresh
    ) -> Tensor:
        """The keyboard: tokens ask, the rows answer, the same everywhere in the picture."""
        heads = self.spec.heads
        rows = self.keyboard_embed(keyboard.to(tokens)).flatten(2)[:, :, None]  # [batch, F, 1, rows · embedding]
        key, value = self.keyboard_attn_kv(rows).unflatten(-1, (2, heads, -1)).unbind(-3)
        query, key = (
            self.key_attn_q_norm(self.mouse_attn_q(tokens).unflatten(-1, (heads, -1))),
            self.key_attn_k_norm(key),
        )
        fresh.keep("keyboard", key, value)
        query, rotated, told = rotate(query, own.action), rotate(key, own.action), []
        for group in groups:
            keys, values = _seen(group, "keyboard", place, key, rotated, value)
            asked = query[:, group.frames]
            told.append(attend(asked, keys, values, group.mask(1)))
        return self.proj_keyboard(torch.cat(told, 1))


def _norm(spec: ActionSpec, width: int) -> nn.Module:
    return nn.RMSNorm(width // spec.heads, 1e-6) if spec.qk_norm else nn.Identity()


def _seen(group: Group, store: str, place: int, key: Tensor, rotated: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated keys and values of everything that a group sees."""
    turned = [seen.turned(key, rotated, space=False) for seen in group.sees]
    return group.keys(store, place, turned), group.values(store, place, value)

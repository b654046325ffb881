"""Waypoint-1's transformer (Overworld; weights Apache-2.0), written from its published facts: one latent frame a pass.

All tokens of a frame see each other and, through a ring cache per layer, earlier frames. Keys are cached turned: a
position is the frame's number and never moves. Every norm is a root mean square without weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.families.waypoint_spec import NOISE_CONDITIONING, WaypointSpec

NOISE_FREQUENCIES = 256

KeyValue = tuple[Tensor, Tensor]  # each [batch, tokens, kv_heads, head_dim]; the keys are turned


class Level(NamedTuple):
    """What a noise level does to the layers, the same for all tokens."""

    layers: Tensor  # [layers, 6, d_model]: scale, shift, gate of the attention, then of the MLP
    out: Tensor  # [2, d_model]: scale, shift


class Told(NamedTuple):
    """What the player says, made ready once per tick."""

    controller: Tensor | None  # [batch, 1, d_model], normalised
    prompt: list[KeyValue | None]  # per layer that sees the prompt: [batch, heads, rows, head_dim]


class Memory(NamedTuple):
    """What one layer may read of earlier frames."""

    kv: Tensor  # [batch, 2, slots, tokens, kv_heads, head_dim]
    visible: Tensor  # bool [batch, slots]


class WaypointTransformer(nn.Module):
    """Predicts the velocity of one latent frame."""

    def __init__(self, spec: WaypointSpec) -> None:
        super().__init__()
        self.spec = spec
        dim = spec.d_model
        self.patchify = nn.Conv2d(spec.channels, dim, spec.patch, stride=spec.patch, bias=False)
        self.denoise_step_emb = Embedding(2 * NOISE_FREQUENCIES, spec.noise_hidden, dim)
        if spec.ctrl_conditioning_period is not None:
            self.ctrl_emb = Embedding(spec.controls, spec.ctrl_hidden, dim)
            self.ctrl_cfg = Null(dim)
        if spec.prompt_conditioning_period is not None:
            self.prompt_cfg = Null(spec.prompt_embedding_dim)
        self.transformer = Layers(spec)
        self.out_norm = OutNorm(dim)
        self.unpatchify = nn.Linear(dim, spec.channels * math.prod(spec.patch))

    def levels(self, sigmas: Sequence[float]) -> list[Level]:
        """What each of some noise levels does, worked out together: their matrices are read once."""
        like = self.unpatchify.weight
        frequency = torch.logspace(0, -1, NOISE_FREQUENCIES, base=10_000.0, device=like.device)
        angle = 1000 * torch.tensor(sigmas, device=like.device, dtype=torch.float32).unsqueeze(1) * frequency
        waves = torch.cat([angle.sin(), angle.cos()], dim=1) * math.sqrt(2)
        embedding = self.denoise_step_emb.mlp(waves.to(like.dtype))
        layers, out = self.transformer.modulations(embedding), self.out_norm.fc(F.silu(embedding)).unflatten(1, (2, -1))
        return [Level(*level) for level in zip(layers.unbind(0), out.unbind(0), strict=True)]

    def told(self, controls: Tensor, prompt: Tensor) -> Told:
        """What the controller and the prompt say.

        controls: [batch, controls]: mouse x, mouse y, buttons, sign of the scroll wheel. prompt: [batch, rows,
        prompt_embedding_dim], zero behind the text's length; the zeros are attended to.
        """
        spec, controller = self.spec, None
        if spec.ctrl_conditioning_period is not None:
            controller = rms(self.ctrl_emb.mlp(controls).unsqueeze(1))
        return Told(controller, self.transformer.prompt_keys(prompt))

    def forward(
        self, x: Tensor, frame: Tensor, level: Level, told: Told, memory: Sequence[Memory]
    ) -> tuple[Tensor, list[KeyValue]]:
        """The velocity of a latent frame, and its keys and values in every layer.

        x: [batch, channels, rows, columns]. frame: int64 [batch], its number. memory: one per layer.
        """
        spec = self.spec
        tokens = self.patchify(x).flatten(2).transpose(1, 2)
        tokens, kept = self.transformer(tokens, angles(spec, frame), level, told, memory)
        scale, shift = level.out
        values = self.unpatchify(F.silu(rms(tokens) * (1 + scale) + shift))
        values = values.view(-1, spec.height, spec.width, spec.channels, *spec.patch)
        return values.permute(0, 3, 1, 4, 2, 5).reshape(x.shape), kept


class Layers(nn.Module):
    """All transformer blocks."""

    def __init__(self, spec: WaypointSpec) -> None:
        super().__init__()
        self.shared, biased = NOISE_CONDITIONING[spec.noise_conditioning]
        self.blocks = nn.ModuleList(Block(spec, layer, biased) for layer in range(spec.n_layers))
        if self.shared:  # one set of matrices, which the files hold under every layer's name
            for block in self._each[1:]:
                block.cond_head.cond_proj = self._each[0].cond_head.cond_proj

    @property
    def _each(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def modulations(self, embedding: Tensor) -> Tensor:
        """[levels, layers, 6, d_model] from the embeddings of noise levels [levels, d_model]."""
        heads = [block.cond_head for block in self._each]
        hidden = [F.silu(embedding if head.bias_in is None else embedding + head.bias_in) for head in heads]
        if self.shared:
            together = torch.stack(hidden, dim=1)
            return torch.stack([matrix(together) for matrix in heads[0].cond_proj], dim=2)
        apart = [
            torch.stack([matrix(h) for matrix in head.cond_proj], 1) for head, h in zip(heads, hidden, strict=True)
        ]
        return torch.stack(apart, dim=1)

    def prompt_keys(self, prompt: Tensor) -> list[KeyValue | None]:
        """Keys and values of a prompt in the layers that see it."""
        normal = rms(prompt)
        reading = [block.prompt_cross_attn for block in self._each]
        return [None if attention is None else attention.keys(normal) for attention in reading]

    def forward(
        self, x: Tensor, turns: Tensor, level: Level, told: Told, memory: Sequence[Memory]
    ) -> tuple[Tensor, list[KeyValue]]:
        kept: list[KeyValue] = []
        for layer, block in enumerate(self.blocks):
            first_v = kept[0][1] if kept else None
            x, mine = block(x, turns, level.layers[layer], told.controller, told.prompt[layer], memory[layer], first_v)
            kept.append(mine)
        return x, kept


class Block(nn.Module):
    """Attention, prompt, controller, MLP; prompt and controller in every few layers only."""

    def __init__(self, spec: WaypointSpec, layer: int, biased: bool) -> None:
        super().__init__()
        dim = spec.d_model
        self.cond_head = Modulation(dim, biased)
        self.attn = FrameAttention(spec)
        self.prompt_cross_attn = PromptAttention(spec) if spec.sees_prompt(layer) else None
        self.ctrl_mlpfusion = Embedding(2 * dim, spec.fusion_hidden, dim) if spec.sees_controller(layer) else None
        self.mlp = Mlp(dim, spec.mlp_hidden, dim)

    def forward(
        self,
        x: Tensor,
        turns: Tensor,
        modulation: Tensor,
        controller: Tensor | None,
        prompt: KeyValue | None,
        memory: Memory,
        first_v: Tensor | None,
    ) -> tuple[Tensor, KeyValue]:
        """x: [batch, tokens, d_model]. first_v: the values of layer 0 in this pass, None in layer 0."""
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = modulation
        found, kept = self.attn(rms(x) * (1 + scale) + shift, turns, memory, first_v)
        x = x + gate * found
        if self.prompt_cross_attn is not None:
            x = x + self.prompt_cross_attn(rms(x), prompt)
        if self.ctrl_mlpfusion is not None and controller is not None:
            x = x + self.ctrl_mlpfusion.mlp(torch.cat([rms(x), controller.expand_as(x)], dim=-1))
        return x + mlp_gate * self.mlp(rms(x) * (1 + mlp_scale) + mlp_shift), kept


class FrameAttention(nn.Module):
    """A frame attends to itself and to the remembered frames; several query heads share a key head."""

    def __init__(self, spec: WaypointSpec) -> None:
        super().__init__()
        dim, self.head_dim = spec.d_model, spec.head_dim
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, spec.n_kv_heads * spec.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, spec.n_kv_heads * spec.head_dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.gate_proj = nn.Linear(spec.n_heads, spec.n_heads, bias=False) if spec.gated_attn else None
        self.v_lamb = nn.Parameter(torch.zeros(())) if spec.value_residual else None

    def forward(self, x: Tensor, turns: Tensor, memory: Memory, first_v: Tensor | None) -> tuple[Tensor, KeyValue]:
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k = turn(rms(q), turns), turn(rms(k), turns)
        if self.v_lamb is not None and first_v is not None:
            v = v + self.v_lamb * (first_v - v)
        found = self._attend(q, k, v, memory)
        if self.gate_proj is not None:
            # The gate reads the first channels of the input itself, one per head.
            found = found * self.gate_proj(x[..., : self.gate_proj.in_features]).sigmoid().unsqueeze(-1)
        return self.out_proj(found.flatten(2)), (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> Tensor:
        """[batch, tokens, heads, head_dim]."""
        tokens = q.shape[1]
        seen = torch.cat([memory.visible, torch.ones_like(memory.visible[:, :1])], dim=1)  # this frame stands last
        mask = seen.repeat_interleave(tokens, dim=1)[:, None, None]
        keys, values = (
            torch.cat([past.flatten(1, 2), now], dim=1).transpose(1, 2)
            for past, now in zip(memory.kv.unbind(1), (k, v), strict=True)
        )
        found = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, enable_gqa=True)
        return found.transpose(1, 2)


class PromptAttention(nn.Module):
    """The frame attends to the prompt's rows, in the prompt's width."""

    def __init__(self, spec: WaypointSpec) -> None:
        super().__init__()
        dim, width, self.head_dim = spec.d_model, spec.prompt_embedding_dim, spec.head_dim
        self.q_proj = nn.Linear(dim, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, dim, bias=False)

    def keys(self, prompt: Tensor) -> KeyValue:
        """[batch, heads, rows, head_dim] each, of a normalised prompt."""
        return rms(self._heads(self.k_proj(prompt))), self._heads(self.v_proj(prompt))

    def forward(self, x: Tensor, prompt: KeyValue) -> Tensor:
        found = F.scaled_dot_product_attention(rms(self._heads(self.q_proj(x))), *prompt)
        return self.out_proj(found.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Modulation(nn.Module):
    """What turns a noise level's embedding into a layer's six vectors."""

    def __init__(self, dim: int, biased: bool) -> None:
        super().__init__()
        self.bias_in = nn.Parameter(torch.zeros(dim)) if biased else None
        self.cond_proj = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(6))


class OutNorm(nn.Module):
    """What turns a noise level's embedding into the scale and shift before the output."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, 2 * dim, bias=False)


class Embedding(nn.Module):
    """An MLP under the checkpoint's name."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim_in, hidden, dim_out)


class Mlp(nn.Module):
    """Linear, SiLU, Linear, no biases."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim_in, hidden, bias=False), nn.Linear(hidden, dim_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)))


class Null(nn.Module):
    """What training puts in place of a dropped condition; part of a checkpoint, not used at play."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.null_emb = nn.Parameter(torch.zeros(1, 1, dim))


def rms(x: Tensor) -> Tensor:
    """x over the root mean square of its last axis; the epsilon is that of the number type."""
    return F.rms_norm(x, x.shape[-1:], eps=torch.finfo(x.dtype).eps)


def angles(spec: WaypointSpec, frame: Tensor) -> Tensor:
    """Rotary angles [batch, tokens, 1, head_dim / 2] of a frame's tokens: column, row, time. Neighbours share one.

    frame: int64 [batch]. In float64, so that a game may last.
    """
    count, device = spec.head_dim // 16, frame.device
    frequency = torch.linspace(1, 0.4 * min(spec.height, spec.width), count, device=device).double() * math.pi
    row, column = (
        _centres(spec.height, device).unsqueeze(1) * frequency,
        _centres(spec.width, device).unsqueeze(1) * frequency,
    )
    time = frame.double().view(-1, 1, 1, 1) * 10_000 ** (-torch.arange(2 * count, device=device).double() / (2 * count))
    shape = len(frame), spec.height, spec.width, -1
    parts = [column.expand(shape), row.unsqueeze(1).expand(shape), time.expand(shape)]
    return torch.cat(parts, dim=-1).repeat_interleave(2, dim=-1).flatten(1, 2).unsqueeze(2)


def _centres(cells: int, device: torch.device) -> Tensor:
    """The middles of `cells` equal parts of −1…1."""
    return (2 * torch.arange(cells, device=device).double() + 1) / cells - 1


def turn(x: Tensor, by: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of the last axis; all first members of the pairs come out before all second ones."""
    cos, sin = by.cos().to(x.dtype), by.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)

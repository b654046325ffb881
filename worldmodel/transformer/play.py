"""The generator at play: the arithmetic of generator.py for the few frames of a tick, in as few operations as possible.

At play a frame has a few dozen tokens, so that an operation costs more than its arithmetic. Therefore what the passes
of a tick have in common is made once, frames stay tokens from noise to last pass, the frames of a pass lie along the
batch axis, and queries and keys are normed and turned together. tests/test_tick.py holds it to the parallel pass.

`time` counts frames from the pending one, which was shown last: 1 is the frame to be made. Queries are not turned in
time; keys are, by how far they lie before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.transformer.generator import NORM_EPSILON, RECENT, Block, Generator
from worldmodel.transformer.rope import TIME_BASE, time_dim

VECTORS = 6  # of a block's modulation
SCALES = (1, 4)  # those of them that multiply


class Conditions:
    """All that the frames of a tick are told, in every pass: one product for all passes and blocks.

    sigmas: of the frames in flight in each pass; in the first pass the pending frame comes before them, clean.
    told: [batch, times, history, action_dim], what led to the frames of time 0, 1, …
    prompt: [batch, prompt_tokens, prompt_dim]. fresh: [batch], 1 where it is news.
    """

    def __init__(
        self, generator: Generator, sigmas: Sequence[Sequence[float]], told: Tensor, prompt: Tensor, fresh: Tensor
    ) -> None:
        self._generator, device = generator, told.device
        flying = [len(levels) for levels in sigmas]
        levels = torch.tensor([0.0, *(level for row in sigmas for level in row)], device=device)
        times = torch.tensor([0, *(time for count in flying for time in range(1, count + 1))], device=device)
        said = generator.actions(told.flatten(2)) + generator.said(prompt, fresh).unsqueeze(1)
        condition = F.silu(generator.level(levels) + said.index_select(1, times))  # [batch, rows, dim]
        if generator.words:
            same = generator.spelled(prompt, fresh).unsqueeze(1).index_select(1, torch.zeros_like(times))
            condition = torch.cat([condition, same], -1)

        tables = torch.stack([block.modulation for block in generator.layers])  # [depth, 6, dim]
        blocks = generator.adaln(condition).unflatten(-1, (1, VECTORS, -1)) + (tables + _ones(SCALES, VECTORS, device))
        head = generator.head_modulation(condition).unflatten(-1, (2, -1)) + _ones((1,), 2, device)
        vectors = torch.cat([blocks.flatten(2, 3), head], 2)  # [batch, rows, depth · 6 + 2, dim]
        by_pass = [part.flatten(0, 1).split(1, dim=1) for part in vectors.split([1 + flying[0], *flying[1:]], dim=1)]
        self._blocks = [part[:-2] for part in by_pass]
        self._head = [part[-2:] for part in by_pass]
        self._head[0] = tuple(later_frames(part, 1 + flying[0]) for part in self._head[0])
        carry = generator.carry(condition[:, 1:]).split(flying, dim=1)
        self._carry = [part.flatten(0, 1).unsqueeze(1) for part in carry]

    def blocks(self, number: int) -> list[tuple[Tensor, ...]]:
        """Every block's modulations in a pass, [frames, 1, dim] each: `Block.modulations`, the scales with 1 added."""
        vectors = self._blocks[number]
        return [vectors[at : at + VECTORS] for at in range(0, len(vectors), VECTORS)]

    def head(self, number: int, x: Tensor, recent: Sequence[Tensor], noisy: Tensor) -> Tensor:
        """As `Generator.latent`, on tokens. x: [frames, tokens, dim]. recent, noisy: [frames, tokens, width] each, the
        latter dimmed by its noise.
        """
        shift, scale = self._head[number]
        hidden = F.layer_norm(x, x.shape[-1:]) * scale + shift
        return self._generator.made(hidden, self._carry[number], recent, noisy)


class Turns:
    """Turning pairs of channels as `rope.turn` does: x · cos + partner(x) · sin, the partner by a product.

    cos, sin: the turn by row and column, [tokens, head_dim].
    """

    def __init__(self, generator: Generator, head_dim: int) -> None:
        device, time = generator.space_cos.device, time_dim(head_dim)
        space, half = head_dim - time, time // 2
        partner = [*_halves_swapped(0, space), *_halves_swapped(space, time)]
        self.partner = torch.tensor(partner, device=device)
        swap = [[float(partner[column] == row) for column in range(head_dim)] for row in range(head_dim)]
        self._swap = torch.tensor(swap, device=device)
        frequency = [TIME_BASE ** (-pair / half) for pair in range(half)]
        self._frequency = torch.tensor([0.0] * space + frequency + [-f for f in frequency], device=device)
        cos, sin = generator.space_cos.squeeze(1), generator.space_sin.squeeze(1)  # [tokens, space / 2]
        still = cos.new_ones(len(cos), time)
        self.cos, self.sin = torch.cat([cos, cos, still], 1), torch.cat([-sin, sin, 0 * still], 1)

    def in_time(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Tables [..., head_dim] for keys that lie `distance` [...] frames before their query."""
        angle = distance.unsqueeze(-1) * self._frequency
        return angle.cos(), angle.sin()

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + (x @ self._swap) * sin


def _halves_swapped(begin: int, size: int) -> list[int]:
    half = size // 2
    return [*range(begin + half, begin + size), *range(begin, begin + half)]


class Layer:
    """One block, with tables that turn, weigh as its norms do, and divide queries by √head_dim."""

    def __init__(self, block: Block, turns: Turns) -> None:
        self.block, self._turns, self._heads = block, turns, block.heads
        head_dim = len(block.norm_q.weight)
        self._half = turns.cos.new_full((head_dim,), 0.5)
        weights = [block.norm_q.weight * 2 * head_dim**-0.5] * block.heads + [block.norm_k.weight * 2] * block.heads
        weight = torch.stack(weights).unsqueeze(1)  # [2 · heads, 1, head_dim]
        self._cos = weight * turns.cos  # [2 · heads, tokens, head_dim]
        self._sin = weight.index_select(2, turns.partner) * turns.sin

    def project(self, x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [frames, heads, tokens, head_dim]. x: [frames, tokens, dim]."""
        hidden = F.layer_norm(x, x.shape[-1:]) * scale + shift
        qkv = self.block.qkv(hidden).unflatten(-1, (3 * self._heads, -1)).transpose(1, 2)
        qk, v = qkv.split([2 * self._heads, self._heads], dim=1)
        q, k = self._turns(self._norm(qk.float()), self._cos, self._sin).split(self._heads, dim=1)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Add what attention found, then the MLP. attended: [frames, heads, tokens, head_dim]."""
        gate, shift, scale, mlp_gate = vectors
        x = x + gate * self.block.out(attended.transpose(1, 2).flatten(2))
        hidden = F.layer_norm(x, x.shape[-1:]) * scale + shift
        return x + mlp_gate * self.block.down(F.gelu(self.block.up(hidden), approximate="tanh"))

    def _norm(self, x: Tensor) -> Tensor:
        """RMSNorm in the form that onnxruntime and openvino make one operation of; a weight of 1 would break it."""
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPSILON) * self._half


class Embedding:
    """Tokens of a frame from its own latent and those before it; where these were shown, they are embedded once.

    led: [batch, DragSpec.NUMBERS, rows, columns], told to all frames but the pending one; None: nothing is.
    """

    def __init__(self, generator: Generator, led: Tensor | None = None) -> None:
        self._generator = generator
        self._led = None if led is None else generator.led_tokens(led.unsqueeze(1)).squeeze(1)
        self._before: dict[int, Tensor] = {}

    def __call__(self, line: Sequence[Tensor], time: int) -> Tensor:
        """line: frames as tokens [batch, tokens, width], the last one is that of `time` and to be embedded."""
        embed, width = self._generator.embed, line[-1].shape[-1]
        if time > 1 or time not in self._before:
            recent = torch.cat([line[-1 - back] for back in range(1, RECENT + 1)], -1)
            before = F.linear(recent, embed.weight[:, width:], embed.bias) + self._generator.place
            self._before[time] = before if self._led is None or time == 0 else before + self._led
        return F.linear(line[-1], embed.weight[:, :width]) + self._before[time]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of queries from `Layer.project`; all are [batch, heads, tokens or keys, head_dim]."""
    return torch.softmax(q @ k.transpose(-1, -2), dim=-1) @ v


def side_by_side(frames: Sequence[Tensor]) -> Tensor:
    """Frames [batch, …] along the batch axis, each player's next to each other."""
    return frames[0] if len(frames) == 1 else torch.stack(list(frames), 1).flatten(0, 1)


def by_frame(x: Tensor, count: int) -> list[Tensor]:
    """The inverse of `side_by_side`."""
    return [x] if count == 1 else each(x.unflatten(0, (-1, count)))


def later_frames(x: Tensor, count: int) -> Tensor:
    """What lies side by side, without each player's first of `count` frames."""
    return side_by_side(by_frame(x, count)[1:])


def each(frames: Tensor) -> list[Tensor]:
    """As frames.unbind(1), which takes two operations a frame when exported."""
    return [frames[:, number] for number in range(frames.shape[1])]


def _ones(at: Sequence[int], count: int, device: torch.device) -> Tensor:
    """[count, 1]: 1 in these rows, 0 elsewhere."""
    return torch.tensor([[float(row in at)] for row in range(count)], device=device)

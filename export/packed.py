"""A Wan transformer for playing on a CPU: weights laid out for oneDNN, neighbouring products made as one.

    fast = packed(model)      # the same pass to rounding; keeps a second copy of the weights

oneDNN uses the whole width of the vector units where the default library may not (twice the speed on AVX-512 CPUs of
AMD), and applies the activation while a product is still in registers. Query, key and value come from one product, and
their norm and rotation are done together. Float32 only; what cannot be packed stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from worldmodel.cache.attention import only, rotate
from worldmodel.families.wan_transformer import Projected, RmsNorm, SelfAttention, WanTransformer

PACKED_FROM = 800_000  # multiplications; from there on oneDNN was faster


def packed(model: WanTransformer) -> WanTransformer:
    """A copy that shares everything but the packed weights; the model itself where there is no oneDNN."""
    if not torch.backends.mkldnn.is_available() or model.head.modulation.dtype != torch.float32:
        return model
    if model.head.modulation.device.type != "cpu":
        return model
    fast = _twin(model)
    for block in fast.blocks:
        block.ffn = nn.Sequential(PackedLinear([block.ffn[0]], "gelu"), PackedLinear([block.ffn[2]]))
        block.cross_attn.q, block.cross_attn.o = PackedLinear([block.cross_attn.q]), PackedLinear([block.cross_attn.o])
        block.self_attn.o = PackedLinear([block.self_attn.o])
        if isinstance(block.self_attn.norm_q, RmsNorm):
            block.self_attn = PackedSelfAttention(block.self_attn)
    for part in (*fast.blocks, fast.head):
        # With a weight of one and a bias of zero torch takes its vector code; without them it goes number by number.
        part.norm = nn.LayerNorm(model.spec.dim, model.spec.eps).requires_grad_(False)
    if model.spec.patch[1] == 2:
        fast.embed = PairedEmbedding(model)
    return fast


def _twin(module: Any) -> Any:
    """A copy whose parts may be exchanged and whose tensors are the same."""
    return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})


class PairedEmbedding:
    """Latents to tokens, two neighbouring columns moved as one complex number: four times faster."""

    def __init__(self, model: WanTransformer) -> None:
        self.down = model.spec.patch[0]
        self.weight, self.bias = model.patch_embedding.weight.flatten(1).detach(), model.patch_embedding.bias

    def __call__(self, latents: Tensor) -> Tensor:
        """[batch, F, channels, rows, columns] to tokens [batch, F, T, dim]."""
        batch, frames, channels, rows, columns = map(int, latents.shape)
        pairs = torch.view_as_complex(latents.contiguous().unflatten(-1, (-1, 2)))
        cells = pairs.reshape(batch, frames, channels, rows // self.down, self.down, columns // 2)
        patches = cells.permute(0, 1, 3, 5, 2, 4).reshape(batch, frames, -1, channels * self.down)
        return nnf.linear(torch.view_as_real(patches).flatten(-2), self.weight, self.bias)


class PackedLinear(nn.Module):
    """Linear layers with the same input, side by side, and tanh-GELU after them if asked.

    Small products stay with the default library, whose calls cost less.
    """

    def __init__(self, layers: list[nn.Linear], activation: str = "none") -> None:
        super().__init__()
        weight = torch.cat([layer.weight for layer in layers]).detach()
        self.plain = weight if weight.numel() < PACKED_FROM else None  # no product with a larger one is small
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = torch.cat([layer.bias for layer in layers]).detach()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if self.plain is not None and x.numel() * len(self.plain) < PACKED_FROM:
            made = nnf.linear(x, self.plain, self.bias)
            return nnf.gelu(made, approximate="tanh") if self.activation == "gelu" else made
        how = "tanh" if self.activation == "gelu" else ""
        found: Tensor = _product()(x, self.weight, self.bias, self.activation, how)
        return found


@lru_cache(maxsize=1)
def _product() -> Any:
    """oneDNN's product as a script, because a recording cannot take it directly."""
    return torch.jit.script(_linear)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str, how: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], how)


def weights(model: WanTransformer) -> list[Tensor]:
    """The packed weights, which a recording takes as inputs: their layout cannot be a constant of it."""
    return [layer.weight for layer in model.modules() if isinstance(layer, PackedLinear)]


@contextmanager
def given(model: WanTransformer, packed_weights: list[Tensor]) -> Iterator[None]:
    """Let the model use these for its packed weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    own = [layer.weight for layer in layers]
    for layer, weight in zip(layers, packed_weights, strict=True):
        layer.weight = weight
    try:
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight = weight


class PackedSelfAttention(SelfAttention):
    """Queries, keys and values from one product; queries of silent frames are made as well, and left out."""

    def __init__(self, plain: Any) -> None:
        nn.Module.__init__(self)
        self.heads, self.dim, self.o = plain.heads, plain.q.in_features, plain.o
        self.together = PackedLinear([plain.q, plain.k, plain.v])
        self.least = torch.tensor(plain.eps)
        self.gains = torch.stack([plain.norm_q.weight, plain.norm_k.weight]).detach()

    def project(self, tokens: Tensor, turns: Tensor, silent: int) -> Projected:
        made = self.together(tokens).unflatten(-1, (3, -1))
        both = made.narrow(-2, 0, 2)
        length = torch.linalg.vector_norm(both, dim=-1, keepdim=True)
        scale = torch.addcmul(self.least, length, length, value=1 / self.dim).rsqrt_()
        normal = (both * scale * self.gains).unflatten(-1, (self.heads, -1))  # [batch, F, T, 2, H, D]
        query, key = normal.unbind(3)
        asked, rotated = rotate(normal, turns.unsqueeze(3)).unbind(3)
        value = made.select(-2, 2).unflatten(-1, (self.heads, -1))
        asking = slice(silent, int(tokens.shape[1]))
        return Projected(only(query, asking), key, value, only(asked, asking), rotated)

"""Low-rank adapters (LoRA, arXiv:2106.09685) on a transformer that stays as it is: y = W x + B A x.

Attention and feed-forward layers of every block are adapted. An adapter lives inside the layer it belongs to, so that
its weights bear PEFT's names by themselves (`blocks.0.self_attn.q.lora_A.weight`), which `worldloop import --lora`
merges. PEFT itself would rename the weights underneath, and switches between the adapters of one model for all passes
at once, which layers that are computed again on the way back cannot follow.
"""

from __future__ import annotations

import copy
import re
from typing import Any, TypeVar, cast

import torch.nn.functional as nnf
from torch import Tensor, nn

from worldmodel.errors import SpecError

Net = TypeVar("Net", bound=nn.Module)
ADAPTED = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.\d+)")


def twin(net: Net) -> Net:
    """Another module of the same weights: not copies of them, the very tensors."""
    return copy.deepcopy(net, {id(parameter): parameter for parameter in net.parameters()})


def adapt(transformer: nn.Module, rank: int) -> nn.Module:
    """Give a frozen transformer adapters, which at first change nothing. Returns what there is to be trained.

    In float32, whatever the precision underneath; they compute in that of what they are given.
    """
    root = nn.Module()
    layers = {name: layer for name, layer in transformer.named_modules() if ADAPTED.fullmatch(name)}
    found = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    if not found:
        raise SpecError("--lora: this transformer has no attention or feed-forward layers by Wan's names")
    for name, layer in found.items():
        where = {"device": layer.weight.device}
        layer.lora_A = nn.Linear(layer.in_features, rank, bias=False, **where)
        layer.lora_B = nn.Linear(rank, layer.out_features, bias=False, **where)
        nn.init.zeros_(layer.lora_B.weight)
        layer.register_forward_hook(_add)
        at = _beneath(root, name)
        at.lora_A, at.lora_B = layer.lora_A, layer.lora_B
    return root


def _add(layer: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    x = cast(Tensor, given[0])
    down, up = (cast(nn.Linear, part).weight.to(x.dtype) for part in (layer.lora_A, layer.lora_B))
    return out + nnf.linear(nnf.linear(x, down), up)


def _beneath(root: nn.Module, name: str) -> nn.Module:
    """The place of a dotted name under a module, made where it is not there."""
    for word in name.split("."):
        if not hasattr(root, word):
            root.add_module(word, nn.Module())
        root = root.get_submodule(word)
    return root

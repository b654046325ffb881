"""Linear layers that multiply in float8, for GPUs that do (compute capability 8.9 and later).

    narrow(world.transformer.blocks)

Weights are rounded once, activations in every pass. A scale for each output channel and one for each token keep what is
large from rounding away what is small. Layers whose sizes the GPU does not take stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KIND = torch.float8_e4m3fn
LARGEST = float(torch.finfo(KIND).max)
MULTIPLE = 16  # of both sizes of a weight


class Float8Linear(nn.Module):
    """weight: float8 [outputs, inputs]. scale: float32 [1, outputs]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = rounded(layer.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x: […, inputs], bfloat16."""
        rows, scale = rounded(x.flatten(0, -2))
        made = torch._scaled_mm(rows, self.weight.t(), scale, self.scale, out_dtype=torch.bfloat16)
        made = made.unflatten(0, x.shape[:-1])
        return made if self.bias is None else made + self.bias


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float8 [rows, numbers] and float32 scales [rows, 1]; their product is what was given, rounded."""
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows.float() / scale).to(KIND), scale


def narrow(module: nn.Module) -> int:
    """Exchange the linear layers inside a module; gives how many."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and not (child.in_features % MULTIPLE or child.out_features % MULTIPLE):
            setattr(module, name, Float8Linear(child))
            count += 1
        else:
            count += narrow(child)
    return count

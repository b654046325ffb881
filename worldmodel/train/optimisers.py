"""How native worlds are optimised: Muon for the hidden matrices, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import nn


def optimisers(model: nn.Module, rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """Muon (orthogonalised momentum, update size matched to AdamW's) and AdamW; `rate` scales both learning rates."""
    hidden = {
        id(child.weight)
        for name, child in model.named_modules()
        if isinstance(getattr(child, "weight", None), nn.Parameter) and child.weight.ndim == 2 and _is_hidden(name)
    }
    matrices = [p for p in model.parameters() if id(p) in hidden]
    rest = [p for p in model.parameters() if id(p) not in hidden]
    return [
        torch.optim.Muon(matrices, lr=2e-3 * rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3 * rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def _is_hidden(module: str) -> bool:
    """Whether a module lies inside a transformer block or a residual block; what reads input or writes output does
    not.
    """
    return module.startswith("blocks.") or module.endswith((".first", ".second"))

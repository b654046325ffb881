"""Give a model the weights of somebody else's checkpoint: strictly, and saying exactly what does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.errors import CheckpointError

SHOWN = 8  # keys named in an error


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors compare with what a model has. `misshaped`: name, expected and found shape."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        wrong = [f"{name} has shape {list(found)}, expected {list(want)}" for name, want, found in self.misshaped]
        parts = [f"{len(keys)} {what}: {_some(keys)}"
                 for what, keys in (("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", wrong))
                 if keys]  # fmt: skip
        return "; ".join(parts)


def fit(wanted: Mapping[str, Iterable[int]], found: Mapping[str, Iterable[int]]) -> Fit:
    """Compare names and shapes."""
    want, have = ({name: tuple(shape) for name, shape in shapes.items()} for shapes in (wanted, found))
    return Fit(
        missing=tuple(name for name in want if name not in have),
        unexpected=tuple(name for name in have if name not in want),
        misshaped=tuple((name, want[name], have[name]) for name in want if name in have and want[name] != have[name]),
    )


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights that must fit one to one and be finite; the model may be on the meta device."""
    wanted = model.state_dict()
    found = fit(shapes(model), {name: tensor.shape for name, tensor in weights.items()})
    if not found.ok:
        raise CheckpointError(f"{where}: the weights do not fit: {found}")
    for name, tensor in weights.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise CheckpointError(f"{where}: '{name}' has type {tensor.dtype}, expected {wanted[name].dtype}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}: '{name}' holds NaN or infinite numbers: the checkpoint is damaged")
    model.load_state_dict(dict(weights), assign=True)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

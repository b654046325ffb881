"""From a public checkpoint to something that plays: recognise, plan the memory, check the fit, load."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from worldmodel.errors import CheckpointError
from worldmodel.families.checkpoint import Checkpoint, Found, merge_lora, open_checkpoint
from worldmodel.families.family import FAMILIES, STATED, About, Playable, build, outline, recognise, stated
from worldmodel.families.loading import Fit, fit
from worldmodel.families.loading import shapes as shapes_of
from worldmodel.families.wan_world import WanWorld, WanWorldSpec, read_codec

MEGABYTE = 1 << 20
TOLD = (STATED, "num_heads", "num_attention_heads", "latent_height", "latent_width")


@dataclass(frozen=True)
class Import:
    """A checkpoint that was recognised; nothing of its size has been allocated.

    weights: its shapes under the family's public names, a codec's behind `codec.`.
    told: of what config said, that by which it can be recognised again.
    """

    family: str
    spec: Any
    where: str
    weights: dict[str, tuple[int, ...]]
    bytes: int
    fit: Fit
    found: Found
    told: dict[str, Any]
    read: Callable[[], dict[str, Tensor]]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.weights.values())

    @property
    def about(self) -> About:
        """What a host has to know of the world, before it is loaded."""
        return cast("Playable", outline(self.family, self.spec)).about

    def memory(self) -> dict[str, float]:
        """What playing takes, in MiB: the weights, one session's state, and the peak of both with a pass under way."""
        world = outline(self.family, self.spec)
        state = sum(
            math.prod(shape) * dtype.itemsize
            for shape, dtype in world.state_shapes().values()  # type: ignore[operator]
        )
        # A tick makes its state beside the one it was given; a pass holds its widest activations and what it reads.
        during = _pass_bytes(world) if isinstance(world, WanWorld) else 0
        sizes = {"weights_mb": self.bytes, "state_mb": state, "peak_mb": self.bytes + 2 * state + during}
        return {name: round(size / MEGABYTE, 1) for name, size in sizes.items()}

    def load(self) -> Playable:
        """The world with its weights; a misfit or a NaN is an error that names the tensor."""
        return build(self.family, self.spec, self.read(), self.where)


def plan_import(
    path: Path,
    codec: Path | None = None,
    lora: Path | None = None,
    part: str | None = None,
    config: dict[str, Any] | None = None,
) -> Import:
    """Recognise a checkpoint and compare it with its family. Reads headers only."""
    main = open_checkpoint(path, part)
    beside = open_checkpoint(codec) if codec else None
    adapter = open_checkpoint(lora) if lora else None
    said = {**main.config, **(adapter.config if adapter else {}), **(config or {})}
    found = Found(str(said[STATED].get("file", ""))) if stated(said) else main.found
    facts = {**said, "found": found, "lora": lora is not None}
    prefix = (
        "codec." if beside and read_codec({f"codec.{name}": shape for name, shape in beside.shapes.items()}) else ""
    )
    weights = dict(main.shapes)
    if beside:
        weights |= {f"{prefix}{name}": shape for name, shape in beside.shapes.items()}
    family, spec = recognise(weights, facts, str(path))
    if codec and bool(prefix) != isinstance(spec, WanWorldSpec):
        reason = "brings what it needs" if prefix else "takes Wan's video autoencoder or TAEHV, which this is not"
        raise CheckpointError(f"{codec}: {FAMILIES[family].title} {reason}")
    if adapter:
        merge_lora(_stand_ins(main.shapes), _stand_ins(adapter.shapes))  # says what does not fit, reads nothing
    return Import(
        family=family,
        spec=spec,
        where=str(path),
        weights=weights,
        bytes=main.bytes + (beside.bytes if beside else 0),
        fit=_fit(family, spec, weights),
        found=found,
        told={name: value for name, value in said.items() if name in TOLD},
        read=lambda: _read(main, beside, prefix, adapter),
    )


def _fit(family: str, spec: Any, weights: dict[str, tuple[int, ...]]) -> Fit:
    """Compare names and shapes without reading a tensor."""
    renamed = FAMILIES[family].reader.rename(_stand_ins(weights))
    return fit(shapes_of(outline(family, spec)), {name: tensor.shape for name, tensor in renamed.items()})


def _stand_ins(weights: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these shapes that take no memory."""
    with torch.device("meta"):
        return {name: torch.empty(shape) for name, shape in weights.items()}


def _read(main: Checkpoint, beside: Checkpoint | None, prefix: str, adapter: Checkpoint | None) -> dict[str, Tensor]:
    weights = main.read()
    if adapter is not None:
        weights = merge_lora(weights, adapter.read())
    if beside is not None:
        weights |= {f"{prefix}{name}": tensor for name, tensor in beside.read().items()}
    return weights


def _pass_bytes(world: WanWorld) -> int:
    """The widest activations of the largest pass, and keys and values as they are read from the cache."""
    spec, size = world.spec, world.transformer.head.modulation.element_size()
    tokens = spec.rows * spec.columns // math.prod(spec.transformer.patch)
    frames = world.stream.lanes * spec.cache.chunk
    widest = frames * tokens * (spec.transformer.ffn_dim + 4 * spec.transformer.dim)
    read = 2 * spec.transformer.layers * spec.cache.slots * tokens * spec.transformer.dim
    return (widest + read) * size

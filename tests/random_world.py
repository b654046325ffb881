"""A run folder with a world of random weights, as if it had been trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from export.pack import Card, load_world, read_card
from worldmodel.spec import WorldSpec
from worldmodel.tick import World


def random_world(
    folder: Path, spec: WorldSpec, card: str, change: Callable[[World], object] = lambda world: None
) -> tuple[World, Card]:
    """The world as export reads it from `folder`, and its card. change: of the weights, before they are written."""
    torch.manual_seed(0)
    world = World(spec)
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        change(world)
    (folder / "spec.json").write_text(spec.to_json())
    save_file(world.codec.state_dict(), folder / "codec.safetensors")
    save_file(world.generator.state_dict(), folder / "world.safetensors")
    (folder / "card.toml").write_text(card)
    return load_world(folder), read_card(folder / "card.toml")

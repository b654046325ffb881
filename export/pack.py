"""A run folder and a card → a world file: weights to graphs, a few moments of the real game as starts, the manifest.

The card is a TOML file with what no training knows:

    title = "Racer"                      licence, credits, trained_on: texts
    preview = false                      true: the player is told that it is unfinished
    prompts = ["a grey road …", …]       suggestions
    default_prompt = "a grey road …"
    [[starts]]                           the first one is the default
    name = "standing"
    seed = 3                             of the real environment's episode
    ticks = 0                            how long its driver drives before play begins; 0: nothing is pressed
"""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from export.onnx import Graphs, quiet
from export.quantize import LOCATION, store_weights
from export.ticks import ticks
from export.world_file import write_world
from worldmodel.begin import begin, context_frames
from worldmodel.condition.native import buttons
from worldmodel.errors import SpecError
from worldmodel.prompt import encoder as prompts
from worldmodel.schedule.table import ScheduleTable
from worldmodel.spec import WorldSpec
from worldmodel.tick import World, carried, state_shapes
from worldmodel.train.codec import load_codec
from worldmodel.train.envs import Adapter, make_adapter_for
from worldmodel.train.heads import with_heads
from worldmodel.train.plan import read_plan
from worldmodel.train.run import load_weights

STORAGES: dict[str, Callable[[str], str]] = {  # name: how each weight is stored
    "fp32": lambda name: "fp32",
    "fp16": lambda name: "fp16",
    # The blocks, and the encoder, which start pictures alone pass, bear int8 well; the decoder draws what is seen.
    "int8": lambda name: "int8" if name.startswith(("generator.blocks.", "codec.encoder.")) else "fp16",
}
TEXTS = ("title", "licence", "credits", "trained_on", "default_prompt")


@dataclass(frozen=True)
class Start:
    """Where play may begin: a moment of the real game."""

    name: str
    seed: int
    ticks: int


@dataclass(frozen=True)
class Card:
    """What no training knows. texts: see TEXTS."""

    texts: dict[str, str]
    preview: bool
    prompts: list[str]
    starts: list[Start]


def read_card(path: Path) -> Card:
    try:
        raw = tomllib.loads(path.read_text())
        starts = [Start(**entry) for entry in raw["starts"]]
        card = Card({name: str(raw[name]) for name in TEXTS}, bool(raw["preview"]), list(raw["prompts"]), starts)
    except FileNotFoundError as error:
        raise SpecError(f"no card at {path}: write one, see export/pack.py") from error
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"card {path}: {type(error).__name__} {error}; see export/pack.py for what it must hold"
        ) from error
    if not card.starts:
        raise SpecError(f"card {path}: needs at least one [[starts]]")
    return card


def load_world(run: Path, weights: Path | None = None, sigmas: tuple[tuple[float, ...], ...] = ()) -> World:
    """The trained world of a run folder; with heads, if 'worldloop train heads' has made them.

    weights: of the generator, by default the run's own world.safetensors.
    sigmas: of a ScheduleTable, by default those of the run's spec. One set of weights plays at any.
    """
    spec, heads = read_plan(run), run / "heads.safetensors"
    if sigmas:
        spec = replace(spec, schedule=ScheduleTable(sigmas))
    if heads.exists():
        spec = with_heads(spec)
    world = World(spec)
    world.codec = load_codec(spec, run)
    if world.heads is not None:
        load_weights(world.heads, heads, code=world.codec.code)
    load_weights(world.generator, weights or run / "world.safetensors", code=world.codec.code)
    return world.eval()


def pack(world: World, card: Card, graphs: Graphs, out: Path, storage: str, level: int = 9) -> str:
    """Write the world file; gives its hash. level: of compression."""
    if storage not in STORAGES:
        raise SpecError(f"weights cannot be stored as {storage!r}: use one of {', '.join(STORAGES)}")
    slim, weights = store_weights(graphs.by_name, STORAGES[storage], arrays(world))
    adapter = make_adapter_for(world.spec.environment, world.spec.width, world.spec.environment_id)
    files = {f"{name}.onnx": model.SerializeToString() for name, model in slim.items()}
    files |= {LOCATION: weights, "prompt.onnx": prompt_graph(), "tokenizer.json": prompts.TOKENIZER.read_bytes()}
    starts = []
    for chosen in card.starts:
        file = f"starts/{chosen.name}.safetensors"
        files[file], prompt = make_start(world, adapter, chosen)
        starts.append({"name": chosen.name, "prompt": prompt, "file": file})
    about = manifest(world.spec, card, adapter.env_id, graphs.flops_per_tick) | {"starts": starts, "storage": storage}
    return write_world(out, about, files, level)


def manifest(spec: WorldSpec, card: Card, environment: str, flops_per_tick: int) -> dict[str, Any]:
    """All of manifest.json but files and starts."""
    kept = carried(spec)
    state = {
        name: {"shape": list(shape), "dtype": str(dtype).removeprefix("torch.")}
        | ({"carried": True} if name in kept else {})
        for name, (shape, dtype) in state_shapes(spec).items()
    }
    noises = {name: list(way.noise) for name, way in ticks(spec).items()}
    return {
        "name": spec.name,
        "tick_hz": spec.tick_hz,
        "height": spec.height,
        "width": spec.width,
        **card.texts,
        "preview": card.preview,
        "prompts": card.prompts,
        "default_start": card.starts[0].name,
        "actions": [
            {"name": button.name, "keys": list(button.keys), **({"condition": condition} if condition else {})}
            for button, condition in buttons(spec).items()
        ],
        "state": state,
        "noise": {"shape": noises.pop("tick")},
        "prompt": {"shape": [spec.prompt_tokens, spec.prompt_dim]},
        "graphs": {
            "tick": {"file": "tick.onnx"},
            "recache": {"file": "recache.onnx"},
            "begin": {"file": "begin.onnx"},
            "prompt": {"file": "prompt.onnx", "tokenizer": "tokenizer.json"},
            **{name: {"file": f"{name}.onnx", "noise": {"shape": noise}} for name, noise in noises.items()},
        },
        "environment": {"id": environment, "adapter": spec.environment},
        "flops_per_tick": flops_per_tick,
        "spec": json.loads(spec.to_json()),
    }


def arrays(world: World) -> dict[str, np.ndarray]:
    """All weights by their torch names."""
    return {name: tensor.float().numpy() for name, tensor in world.state_dict().items()}


@cache
def prompt_graph() -> bytes:
    """The same for every world."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompt.onnx")
        with quiet():
            prompts.PromptEncoder.load().to_onnx(file)
        return file.read_bytes()


@torch.no_grad()
def make_start(world: World, adapter: Adapter, chosen: Start) -> tuple[bytes, str]:
    """A moment of the real game as the part of the state that recache cannot make, and a caption of it.

    The frames that the world is told of are all of one scene: if it has changed on the way, play begins a little later.
    """
    needed, still = context_frames(world.spec), np.zeros(len(adapter.actions), bool)
    frames, pressed = [adapter.reset(chosen.seed)], [still]
    scenes = [adapter.scene()]
    drive = adapter.policy(np.random.default_rng(chosen.seed)) if chosen.ticks else lambda: still
    while len(frames) < max(needed, chosen.ticks) or any(scene is not scenes[-1] for scene in scenes[-needed:]):
        action = drive()
        frame, done = adapter.step(action)
        if done:
            raise SpecError(f"start {chosen.name!r}: the episode of seed {chosen.seed} ends early; choose another seed")
        frames.append(frame)
        pressed.append(action)
        scenes.append(adapter.scene())
    order = [adapter.actions.index(name) for name in world.spec.actions]
    told = torch.from_numpy(np.stack(pressed[-needed:])[:, order]).float()
    state = begin(world, torch.from_numpy(np.stack(frames[-needed:])).unsqueeze(0), told.unsqueeze(0))
    kept = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith("kv.")}
    return save(kept), str(scenes[-1]["captions"][0])

"""Give a world file a graph that multiplies in int8: calibrated on play, mixed precision under a quality budget.

Ranges come from roll-outs of every start with random keys, not from single frames, and so does what a layer costs: what
a tick does to its own later frames counts, the first ones most, as all others follow from them (Q-ARVD). A layer that
would cost more than the budget allows stays in float32, and so do the loud channels of the others.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from export.int8 import Feed, calibrate, linears, scales, with_int8
from export.world_file import write_world
from runtime.errors import CheckFailed, WorldFileError
from runtime.noise import tick_noise
from runtime.parity import compare, relative_error
from runtime.session import Session
from runtime.world import World

TICKS = 40  # of each roll-out
EVERY = 4  # ticks between those that ranges are taken from
PROBED = 8  # ticks of each roll-out that a layer's error is measured on
PRESSED = 0.3  # share of the time that a key is held
HELD = 5  # ticks
BUDGET = 35.0  # dB, mean PSNR of 50 free ticks against float32
GRAPH = "tick_int8"


def add_int8(world: World, out: Path, budget: float = BUDGET) -> dict[str, Any]:
    """Write a copy of the world with the graph; gives its layers, the least sensitive first, and how well it plays."""
    file = world.manifest.graphs["tick"].file
    with world.unpacked() as folder:
        slim, whole = onnx.load(folder / file, load_external_data=False), onnx.load(folder / file)
    if not linears(slim):
        raise WorldFileError(f"{world.path}: its weights are not stored in int8: export it with --storage int8")
    games = roll_outs(world, {value.name for value in slim.graph.input})
    ranges, factors = calibrate(whole, [feed for game in games for feed in game[::EVERY]]), scales(whole)
    exact = play(whole, games)
    errors = {}
    for name in linears(whole):
        found = play(with_int8(whole, ranges, factors, [name]), games)
        errors[name] = float(np.mean([relative_error(*pair) for pair in zip(found, exact, strict=True)]))
    order = sorted(errors, key=lambda name: errors[name])
    reference = Session(world, backend="onnxruntime", precision="fp32")
    psnr: dict[int, float] = {}  # by how many layers are int8

    def allowed(count: int) -> bool:
        with tempfile.TemporaryDirectory(prefix="worldloop-") as folder:
            trial = write_with(world, Path(folder, "trial.world"), with_int8(slim, ranges, factors, order[:count]), 1)
            reference.restart()
            found = compare(reference, Session(World.open(trial), backend="onnxruntime", precision="int8"))
        psnr[count] = sum(found.psnr) / len(found.psnr)
        return psnr[count] >= budget

    count = most(len(order), allowed)
    if not count:
        best = max(psnr.values())
        raise CheckFailed(f"{world.path}: no layer can be int8 at {budget:g} dB, the best choice reaches {best:.1f} dB")
    write_with(world, out, with_int8(slim, ranges, factors, order[:count]), 9)
    apart = {
        name: sum(ranges[node.input[0]].apart.size for node in one.products) for name, one in linears(whole).items()
    }
    layers = [
        {"weight": name, "error": errors[name], "int8": name in order[:count], "apart": apart[name]} for name in order
    ]
    return {"out": str(out), "bytes": out.stat().st_size, "layers": layers, "psnr": round(psnr[count], 2)}


def most(limit: int, allowed: Callable[[int], bool]) -> int:
    """The largest count up to the limit that is allowed, if what is allowed stays so for fewer."""
    if allowed(limit):
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


def roll_outs(world: World, inputs: Collection[str]) -> list[list[Feed]]:
    """What the ticks are given while a world is played from each of its starts."""
    manifest, games = world.manifest, []
    for seed, start in enumerate(manifest.starts):
        session = Session(world, backend="onnxruntime", precision="fp32", seed=seed, start=start.name)
        rng = np.random.default_rng(seed)
        prompt = session.backend.embed(start.prompt)
        held: list[str] = []
        feeds: list[Feed] = []
        for tick in range(TICKS):
            if tick % HELD == 0:
                held = [name for name in manifest.action_names if rng.random() < PRESSED]
            given = {f"state.{name}": array.copy() for name, array in session.peek().items()}
            noise = tick_noise(seed, tick, (1, *manifest.noise))
            given |= {"action": world.action(held), "prompt": prompt, "noise": noise}
            feeds.append({name: array for name, array in given.items() if name in inputs})
            session.tick(held)
        games.append(feeds)
    return games


def play(model: onnx.ModelProto, games: Sequence[Sequence[Feed]]) -> list[np.ndarray]:
    """The newest latent after each of the first ticks of every game, played on from the model's own state."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, names = {value.name for value in session.get_inputs()}, [value.name for value in session.get_outputs()]
    latents = []
    for game in games:
        state: Feed = {}
        for feed in game[:PROBED]:
            after = dict(zip(names, session.run(names, {**feed, **state}), strict=True))
            changed = {f"state.{name.removeprefix('next.')}": array for name, array in after.items()}
            state = {name: array for name, array in changed.items() if name in inputs}
            latents.append(after["next.latents"][:, -1])
    return latents


def write_with(world: World, out: Path, graph: onnx.ModelProto, level: int) -> Path:
    """A copy of a world file with this graph in it."""
    assert world.path is not None, "a world with graphs has a file"
    with zipfile.ZipFile(world.path) as archive:
        about = json.loads(archive.read("manifest.json"))
    files = {name: world.read(name) for name in about.pop("files")} | {f"{GRAPH}.onnx": graph.SerializeToString()}
    about.pop("format")
    about["graphs"][GRAPH] = {"file": f"{GRAPH}.onnx"}
    write_world(out, about, files, level)
    return out

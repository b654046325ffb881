"""Give a world file a graph that multiplies in int8: calibrated on play, mixed precision under a quality budget.

Ranges come from roll-outs of every start with random keys, not from single frames: what a tick does to its own later
frames counts (Q-ARVD). A layer that would cost more than the budget allows stays in float32.
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
PROBES = 6  # ticks that a layer's error is measured on
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
    feeds = roll_outs(world, {value.name for value in slim.graph.input})
    ranges, factors = calibrate(whole, feeds[::EVERY]), scales(whole)
    probes = feeds[EVERY // 2 :: max(1, len(feeds) // PROBES)]
    exact = run(whole, probes)
    errors = {}
    for name in linears(whole):
        found = run(with_int8(whole, ranges, factors, [name]), probes)
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
    layers = [{"weight": name, "error": errors[name], "int8": name in order[:count]} for name in order]
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


def roll_outs(world: World, inputs: Collection[str]) -> list[Feed]:
    """What the tick is given while a world is played from each of its starts."""
    manifest, feeds = world.manifest, []
    for seed, start in enumerate(manifest.starts):
        session = Session(world, backend="onnxruntime", precision="fp32", seed=seed, start=start.name)
        rng = np.random.default_rng(seed)
        prompt = session.backend.embed(start.prompt)
        held: list[str] = []
        for tick in range(TICKS):
            if tick % HELD == 0:
                held = [name for name in manifest.action_names if rng.random() < PRESSED]
            given = {f"state.{name}": array.copy() for name, array in session.peek().items()}
            noise = tick_noise(seed, tick, (1, *manifest.noise))
            given |= {"action": world.action(held), "prompt": prompt, "noise": noise}
            feeds.append({name: array for name, array in given.items() if name in inputs})
            session.tick(held)
    return feeds


def run(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[np.ndarray]:
    """The newest latent after each of these ticks."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [session.run(["next.latents"], feed)[0][:, -1] for feed in feeds]


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

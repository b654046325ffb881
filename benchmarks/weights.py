"""Does it pay to store a world in fewer bits? What its blocks would take, and how far its future then departs.

    python benchmarks/weights.py [WORLD] [--ticks 50] [--json]

The matrices of the blocks are rounded to so many bits, with a scale for each output or for each 32 numbers, and the
world plays on onnxruntime in float32 beside itself as it is shipped: mean and worst PSNR of free ticks. The rest of the
file stays. Weights are turned back to float32 while a world loads, so a tick takes as long as before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from export.quantize import PREFIX, SMALL, with_weights
from runtime.backends.graphs import GraphBackend
from runtime.backends.onnxruntime import OrtEngine
from runtime.parity import compare
from runtime.session import Session
from runtime.world import World

CHOICES = ((8, 0), (6, 0), (4, 0), (4, 32), (3, 32))  # bits, and numbers that share a scale; 0: those of an output
SCALE_BITS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default="racer")
    parser.add_argument("--ticks", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    world = World.open(arguments.world)
    with world.unpacked() as folder:
        model = with_weights(folder / world.manifest.graphs["tick"].file)
    rows = [measure(world, model, bits, group, arguments.ticks) for bits, group in CHOICES]
    print(json.dumps({"world": world.manifest.name, "rows": rows}) if arguments.json else table(rows))


def measure(world: World, model: onnx.ModelProto, bits: int, group: int, ticks: int) -> dict[str, Any]:
    trial, stored = onnx.ModelProto(), 0.0
    trial.CopyFrom(model)
    for tensor in trial.graph.initializer:
        name = tensor.name.removeprefix(PREFIX)
        if name.startswith("generator.blocks.") and len(tensor.dims) == 2 and np.prod(tensor.dims) >= SMALL:
            weight = onnx.numpy_helper.to_array(tensor)
            stored += (weight.size * bits + weight.size // (group or weight.shape[1]) * SCALE_BITS) / 8
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded(weight, bits, group), tensor.name))
    reference = Session(world, backend="onnxruntime", precision="fp32")
    backend = reference.backend
    assert isinstance(backend, GraphBackend)
    session = onnxruntime.InferenceSession(trial.SerializeToString(), providers=["CPUExecutionProvider"])
    engines = {**backend.engines, "tick": OrtEngine(session)}
    found = compare(reference, Session(world, backend=dataclasses.replace(backend, engines=engines)), ticks)
    return {
        "bits": bits,
        "scale_for": group or "output",
        "blocks_mb": round(stored / 1e6, 2),
        "psnr_mean": round(float(np.mean(found.psnr)), 1),
        "psnr_worst": round(min(found.psnr), 1),
    }


def rounded(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """The weight [outputs, inputs] as so many bits keep it."""
    rows = weight.reshape(-1, group or weight.shape[1])
    largest = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(rows).max(1, keepdims=True), 1e-12) / largest
    return (np.rint(rows / scale) * scale).reshape(weight.shape).astype(np.float32)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| bits | a scale for each | blocks | PSNR, mean | worst |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['bits']} | {row['scale_for']} | {row['blocks_mb']} MB "
        f"| {row['psnr_mean']} dB | {row['psnr_worst']} dB |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

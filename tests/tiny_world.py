"""A real world file with real graphs, small enough for a test: actions push bars up, the prompt lifts them all."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save

from export.quantize import store_weights
from export.world_file import write_world

HEIGHT, ACTIONS, CELLS = 8, 3, 4  # a frame is HEIGHT × CELLS pixels
TABLE = np.linspace(0.5, 2.0, ACTIONS * CELLS, dtype=np.float32).reshape(ACTIONS, CELLS)
ABOUT: dict[str, Any] = {
    "name": "tiny", "title": "Bars", "tick_hz": 25, "height": HEIGHT, "width": CELLS, "preview": False,
    "licence": "MIT", "credits": "tests", "trained_on": "nothing",
    "actions": [{"name": name, "keys": [key]} for name, key in (("left", "a"), ("right", "d"), ("gas", "w"))],
    "prompts": ["bright", "dark"], "default_prompt": "dark", "default_start": "zero",
    "state": {
        "bars": {"shape": [1, CELLS], "dtype": "float32"}, "tint": {"shape": [1, CELLS], "dtype": "float32"},
        "frame": {"shape": [1], "dtype": "int64"},
    },
    "noise": {"shape": [1, 1, 1, CELLS]}, "prompt": {"shape": [1, CELLS]},
    "graphs": {
        "tick": {"file": "tick.onnx"}, "recache": {"file": "recache.onnx"},
        "prompt": {"file": "prompt.onnx", "tokenizer": "tokenizer.json"},
    },
    "starts": [
        {"name": "zero", "prompt": "dark", "file": "starts/zero.safetensors"},
        {"name": "far", "prompt": "bright", "file": "starts/far.safetensors"},
    ],
    "environment": {"id": "Bars-v0", "adapter": "bars"}, "flops_per_tick": 1000,
}  # fmt: skip


def graph(nodes: list, inputs: dict, outputs: dict, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    kinds = {
        np.dtype("float32"): TensorProto.FLOAT,
        np.dtype("int64"): TensorProto.INT64,
        np.dtype("uint8"): TensorProto.UINT8,
    }

    def values(named: dict) -> list:
        return [helper.make_tensor_value_info(n, kinds[np.dtype(t)], shape) for n, (t, shape) in named.items()]

    made = helper.make_graph(
        nodes,
        "g",
        values(inputs),
        values(outputs),
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def tick_graph() -> onnx.ModelProto:
    """bars' = bars + action · table + noise / 100; the frame's columns show bars + tint, modulo 256."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["action", "table"], ["wide"]),
        node("Slice", ["wide", "from", "to", "axis"], ["push"]),
        node("Reshape", ["noise", "flat"], ["noise2"]),
        node("Mul", ["noise2", "hundredth"], ["shake"]),
        node("Add", ["state.bars", "push"], ["pushed"]),
        node("Add", ["pushed", "shake"], ["next.bars"]),
        node("Add", ["state.frame", "one"], ["next.frame"]),
        node("Add", ["next.bars", "state.tint"], ["shown"]),
        node("Mod", ["shown", "limit"], ["level"], fmod=1),
        node("Abs", ["level"], ["positive"]),
        node("Cast", ["positive"], ["byte"], to=TensorProto.UINT8),
        node("Reshape", ["byte", "column"], ["columns"]),
        node("Expand", ["columns", "picture"], ["frame"]),
    ]
    weights = {
        "table": np.ascontiguousarray(np.tile(TABLE, (1, 100))),  # large enough to be stored outside the graph
        "from": np.array([0]), "to": np.array([CELLS]),
        "axis": np.array([1]), "flat": np.array([-1, CELLS]), "hundredth": np.array(0.01, np.float32),
        "one": np.array([1]),
        "limit": np.array(256, np.float32), "column": np.array([-1, 1, CELLS, 1]),
        "picture": np.array([1, HEIGHT, CELLS, 3]),
    }  # fmt: skip
    inputs = {
        "state.bars": ("float32", ["n", CELLS]),
        "state.tint": ("float32", ["n", CELLS]),
        "state.frame": ("int64", ["n"]),
        "action": ("float32", ["n", ACTIONS]),
        "noise": ("float32", ["n", 1, 1, 1, CELLS]),
    }
    outputs = {
        "frame": ("uint8", ["n", HEIGHT, CELLS, 3]),
        "next.bars": ("float32", ["n", CELLS]),
        "next.frame": ("int64", ["n"]),
    }
    return graph(nodes, inputs, outputs, weights)


def recache_graph() -> onnx.ModelProto:
    nodes = [helper.make_node("Squeeze", ["prompt", "axis"], ["next.tint"])]
    inputs = {"prompt": ("float32", ["n", 1, CELLS])}
    return graph(nodes, inputs, {"next.tint": ("float32", ["n", CELLS])}, {"axis": np.array([1])})


def prompt_graph() -> onnx.ModelProto:
    """The sum of the token numbers, times ten, in every cell."""
    node = helper.make_node
    nodes = [
        node("Mul", ["ids", "mask"], ["seen"]), node("ReduceSum", ["seen", "axis"], ["sum"], keepdims=1),
        node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT), node("Mul", ["number", "ten"], ["tint"]),
        node("Reshape", ["tint", "small"], ["one"]), node("Expand", ["one", "wide"], ["prompt"]),
    ]  # fmt: skip
    weights = {
        "axis": np.array([1]),
        "ten": np.array(10, np.float32),
        "small": np.array([-1, 1, 1]),
        "wide": np.array([1, 1, CELLS]),
    }
    return graph(
        nodes,
        {"ids": ("int64", ["n", "t"]), "mask": ("int64", ["n", "t"])},
        {"prompt": ("float32", ["n", 1, CELLS])},
        weights,
    )


def tokenizer() -> bytes:
    vocabulary = {"[UNK]": 0, "dark": 1, "bright": 9, "very": 3}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }).encode()  # fmt: skip


def tiny_files() -> dict[str, bytes]:
    slim, weights = store_weights({"tick": tick_graph(), "recache": recache_graph()}, lambda name: "fp32")
    return {
        **{f"{name}.onnx": model.SerializeToString() for name, model in slim.items()},
        "prompt.onnx": prompt_graph().SerializeToString(),
        "weights/world.safetensors": weights,
        "tokenizer.json": tokenizer(),
        "starts/zero.safetensors": save({"frame": np.array([0])}),
        "starts/far.safetensors": save({"bars": np.full((1, CELLS), 50, np.float32), "frame": np.array([7])}),
    }


def write_tiny(path: Path, files: dict[str, bytes] | None = None, **about: Any) -> Path:
    """A tiny world; `about` overrides manifest fields, `files` files."""
    write_world(path, {**ABOUT, **about}, {**tiny_files(), **(files or {})})
    return path


def rolling_tick(reprime: bool) -> onnx.ModelProto:
    """One frame in flight, made for the action that is held: bars' = bars + flight, flight' = action · table.

    reprime: the frame in flight is dropped and made anew for this action: bars' = bars + action · table.
    """
    node = helper.make_node
    made = tick_graph()
    nodes = [entry for entry in made.graph.node if entry.output[0] != "pushed"]
    nodes[3:3] = [
        node("Reshape", ["push", "one frame"], ["next.flight"]),
        node("Reshape", ["push" if reprime else "state.flight", "flat"], ["leaving"]),
        node("Add", ["state.bars", "leaving"], ["pushed"]),
    ]
    flight = helper.make_tensor_value_info("state.flight", TensorProto.FLOAT, ["n", 1, CELLS])
    after = helper.make_tensor_value_info("next.flight", TensorProto.FLOAT, ["n", 1, CELLS])
    weights = [*made.graph.initializer, onnx.numpy_helper.from_array(np.array([-1, 1, CELLS]), "one frame")]
    inputs = [value for value in made.graph.input if value.name != "noise"] + [
        helper.make_tensor_value_info("noise", TensorProto.FLOAT, ["n", 2 if reprime else 1, 1, 1, CELLS])
    ]
    if reprime:  # shakes by the first of its two noises, as the tick does by its only one
        flat = next(entry for entry in nodes if entry.output[0] == "noise2")
        flat.input[0] = "noise of the frame"
        nodes.insert(0, node("Slice", ["noise", "from", "one", "axis"], ["noise of the frame"]))
    else:
        inputs.append(flight)
    graph = helper.make_graph(nodes, "g", inputs, [*made.graph.output, after], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def write_rolling(path: Path) -> Path:
    """A tiny world with a frame in flight and a graph that makes it anew."""
    models = {"tick": rolling_tick(False), "reprime": rolling_tick(True), "recache": recache_graph()}
    slim, weights = store_weights(models, lambda name: "fp32")
    graphs = {**ABOUT["graphs"], "reprime": {"file": "reprime.onnx", "noise": {"shape": [2, 1, 1, CELLS]}}}
    files = {f"{name}.onnx": model.SerializeToString() for name, model in slim.items()}
    state = {**ABOUT["state"], "flight": {"shape": [1, 1, CELLS], "dtype": "float32"}}
    return write_tiny(path, {**files, "weights/world.safetensors": weights}, name="rolling", graphs=graphs, state=state)


def write_fast(path: Path) -> Path:
    """A tiny world with a quicker tick of fewer steps, which shakes more."""
    models = {"tick": tick_graph(), "tick_fast": tick_graph(), "recache": recache_graph()}
    weights = models["tick_fast"].graph.initializer
    shake = next(weight for weight in weights if weight.name == "hundredth")
    shake.CopyFrom(onnx.numpy_helper.from_array(np.array(10, np.float32), "hundredth"))
    slim, stored = store_weights(models, lambda name: "fp32")
    graphs = {**ABOUT["graphs"], "tick_fast": {"file": "tick_fast.onnx"}}
    files = {f"{name}.onnx": model.SerializeToString() for name, model in slim.items()}
    return write_tiny(path, {**files, "weights/world.safetensors": stored}, name="fast", graphs=graphs)


def rezip(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """A copy with some entries replaced, added or (None) left out, whatever the manifest says."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        entries = {name: old.read(name) for name in old.namelist()}
        for name, data in {**entries, **change}.items():
            if data is not None:
                new.writestr(name, data)
    return target

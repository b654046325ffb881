"""How weights are stored: float32, float16, or int8 with a scale per output; graphs turn them back to float32.

The weights of all graphs of a world go into one safetensors file, under the names they have in torch. Graphs refer to
them by offset (ONNX external data), so that graphs share what they have in common.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load

from worldmodel.errors import SpecError

PREFIX = "world."  # of the module that is traced
SMALL = 1024  # numbers; smaller weights stay float32, smaller constants inside the graph
STORAGES = ("fp32", "fp16", "int8")
GRAPHS = ("tick", "recache", "begin", "reprime", "tick_fast")  # names that constants of single graphs begin with
LOCATION = "weights/world.safetensors"


@dataclass(frozen=True)
class Stored:
    """One weight: what is kept for it, and the nodes that make the float32 tensor of the same name of it."""

    tensors: dict[str, np.ndarray]
    nodes: list[onnx.NodeProto]


def store_weights(
    models: Mapping[str, onnx.ModelProto],
    storage: Callable[[str], str],
    weights: Mapping[str, np.ndarray] | None = None,
) -> tuple[dict[str, onnx.ModelProto], bytes]:
    """The graphs without weights, and the safetensors file that holds these.

    storage: weight name → one of STORAGES. weights: all of the world's; the exporter merges equal ones in the graphs.
    """
    kept: dict[str, np.ndarray] = {}
    for name, weight in (weights or {}).items():
        kept |= store(name, name, weight, storage(name)).tensors
    refer: dict[str, list[str]] = {}  # graph: names of its outside tensors
    slim = {}
    for graph_name, model in models.items():
        model = onnx.ModelProto.FromString(model.SerializeToString())
        graph, first, named = model.graph, [], []
        large = [tensor for tensor in graph.initializer if _size(tensor) >= SMALL or tensor.name.startswith(PREFIX)]
        for tensor in large:
            graph.initializer.remove(tensor)
            name = weight_name(graph_name, tensor.name)
            kind = storage(name) if tensor.name.startswith(PREFIX) else "fp32"  # made-up constants: tables of angles
            stored = store(name, tensor.name, numpy_helper.to_array(tensor), kind)
            for key, array in stored.tensors.items():
                if key in kept and not np.array_equal(kept[key], array):
                    raise SpecError(f"weight {key} differs between graphs")
                kept[key] = array
                named.append(key)
            first += stored.nodes
        nodes = [*first, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)
        slim[graph_name], refer[graph_name] = model, named
    file, places = safetensors_bytes(kept)
    for graph_name, model in slim.items():
        for key in refer[graph_name]:
            array = kept[key]
            wide = helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.initializer.append(outside(key, wide, array.shape, LOCATION, places[key]))
    return slim, file


def store(name: str, wanted: str, weight: np.ndarray, storage: str) -> Stored:
    """name: in the weights file. wanted: the tensor in the graph."""
    if storage not in STORAGES:
        raise SpecError(f"weights cannot be stored as {storage!r}: use one of {', '.join(STORAGES)}")
    if weight.dtype != np.float32 or weight.size < SMALL or storage == "fp32":
        return Stored({name: weight}, [helper.make_node("Identity", [name], [wanted])])
    if storage == "fp16":
        half = weight.astype(np.float16)
        return Stored({name: half}, [helper.make_node("Cast", [name], [wanted], to=TensorProto.FLOAT)])
    if weight.ndim < 2:
        return store(name, wanted, weight, "fp16")
    values, scale = quantize(weight)
    # Cast and Mul, not DequantizeLinear: every backend folds them into a float32 constant while it loads.
    nodes = [
        helper.make_node("Cast", [name], [f"{wanted}.cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{wanted}.cast", f"{name}.scale"], [wanted]),
    ]
    return Stored({name: values, f"{name}.scale": scale.reshape(-1, *[1] * (weight.ndim - 1))}, nodes)


def with_weights(graph: Path) -> onnx.ModelProto:
    """A graph of a world file with its weights inside, as float32: the inverse of `store_weights`.

    graph: its file, beside the world's other files.
    """
    model = onnx.load(graph)
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    rest = []
    for node in model.graph.node:
        if node.op_type not in ("Identity", "Cast", "Mul") or not all(name in known for name in node.input):
            rest.append(node)
            continue
        parts = [numpy_helper.to_array(known[name]) for name in node.input]
        whole = parts[0] * parts[1] if node.op_type == "Mul" else parts[0]
        whole = whole.astype(np.float32) if node.op_type == "Cast" else whole
        known[node.output[0]] = numpy_helper.from_array(np.ascontiguousarray(whole), node.output[0])
    read = {name for node in rest for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(rest)
    model.graph.initializer.extend(tensor for name, tensor in known.items() if name in read)
    return model


def quantize(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and float32 scales [outputs] of a weight [outputs, …]; values × scale is the weight, rounded.

    The scale of a channel is the one that leaves the least squared error: clipping the very largest value a little is
    often better than giving it the whole range.
    """
    rows = weight.reshape(len(weight), -1)
    largest = np.maximum(np.abs(rows).max(1), 1e-12)
    best_scale, best_error = largest / 127, np.full(len(rows), np.inf)
    for share in np.linspace(0.7, 1.0, 13):
        scale = (share * largest / 127).astype(np.float32)
        error = np.square(np.rint(rows / scale[:, None]).clip(-127, 127) * scale[:, None] - rows).sum(1)
        better = error < best_error
        best_scale, best_error = np.where(better, scale, best_scale), np.where(better, error, best_error)
    scale = best_scale.astype(np.float32)
    return np.rint(rows / scale[:, None]).clip(-127, 127).astype(np.int8).reshape(weight.shape), scale


def weight_name(graph: str, name: str) -> str:
    """The torch name of a weight; a constant that the exporter made up belongs to its graph alone."""
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else f"{graph}.{name}"


def read_weights(file: bytes) -> dict[str, np.ndarray]:
    """A weights file as float32 arrays under their torch names; constants of single graphs are left out."""
    stored = load(file)
    weights = {}
    for name, array in stored.items():
        if name.endswith(".scale") or name.split(".")[0] in GRAPHS:
            continue
        scale = stored.get(f"{name}.scale", np.float32(1))
        weights[name] = array.astype(np.float32) * scale
    return weights


SAFETENSORS_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "F32",
    TensorProto.FLOAT16: "F16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "I8",
    TensorProto.INT64: "I64",
    TensorProto.INT32: "I32",
    TensorProto.UINT8: "U8",
    TensorProto.BOOL: "BOOL",
}


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A safetensors file and where in it each tensor lies: (offset from the file's beginning, bytes)."""
    described = {
        name: (helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.nbytes)
        for name, array in tensors.items()
    }
    header, places = safetensors_header(described)
    return b"".join([header, *(np.ascontiguousarray(tensors[name]).tobytes() for name in places)]), places


def safetensors_header(
    tensors: Mapping[str, tuple[int, tuple[int, ...], int]],
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """How a safetensors file begins, and where in it each tensor lies, in the order of the file.

    Written here because a graph needs the offsets, which the library does not give away. Wide types come first, and the
    header is padded, so that all tensors are aligned.

    tensors: name → (ONNX type, shape, bytes).
    """

    def width(name: str) -> int:
        return helper.tensor_dtype_to_np_dtype(tensors[name][0]).itemsize

    order = sorted(tensors, key=lambda name: (-width(name), name))
    entries: dict[str, object] = {}
    offsets: dict[str, tuple[int, int]] = {}
    at = 0
    for name in order:
        kind, shape, size = tensors[name]
        offsets[name] = (at, size)
        entries[name] = {"dtype": SAFETENSORS_TYPES[kind], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 64)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: (begin + at, size) for name, (at, size) in offsets.items()}


def outside(name: str, kind: int, shape: tuple[int, ...], location: str, place: tuple[int, int]) -> TensorProto:
    """An initializer whose values lie in a weights file. kind: of TensorProto.DataType."""
    tensor = TensorProto(name=name, data_type=kind, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", place[0]), ("length", place[1])):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _size(tensor: TensorProto) -> int:
    return int(np.prod(tensor.dims)) if tensor.dims else 1

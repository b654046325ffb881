"""A float32 graph in fp16 or bf16: what strongly typed engines are built from.

Inputs and outputs keep their types, casts stand at the edges, so that a narrow graph takes the place of the wide one.
Angles stay float32 up to their sine and cosine: bf16 cannot tell position 257 from 258.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from worldmodel.errors import SpecError

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
WAVES = ("Cos", "Sin")


def narrow(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy of the model in another precision. Weights must lie inside it."""
    if precision not in TYPES:
        raise SpecError(f"a graph cannot be made {precision!r}: use one of {', '.join(TYPES)}")
    kind, made = TYPES[precision], onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inputs, outputs = _wide(graph.input), _wide(graph.output)
    angles = _angles(graph)
    floats = _floats(made) if angles else set()
    lasting = {name for number in angles for name in [*graph.node[number].input, *graph.node[number].output]}
    lasting |= {name for node in graph.node for name in _sizes(node)}
    plain = [node for number, node in enumerate(graph.node) if number not in angles]
    shared = {name for node in plain for name in node.input if name not in _sizes(node)}
    for tensor in graph.initializer:
        if tensor.name in shared or tensor.name not in lasting:
            _narrow_tensor(tensor, kind)
    nodes, widened = [], set(inputs)
    widened |= {tensor.name for tensor in graph.initializer if tensor.name in lasting - shared}
    for number, node in enumerate(graph.node):
        if number not in angles:
            nodes.append(_narrowed(node, kind, inputs, outputs))
            continue
        for at, name in enumerate(node.input):
            if name in floats and name not in widened:
                nodes.append(helper.make_node("Cast", [name], [f"{name}.again{number}"], to=TensorProto.FLOAT))
                node.input[at] = f"{name}.again{number}"
        nodes.append(node)
        widened |= set(node.output)
        if node.op_type in WAVES:
            result = node.output[0]
            node.output[0] = f"{result}.wave"
            nodes.append(helper.make_node("Cast", [node.output[0]], [result], to=kind))
    first = [helper.make_node("Cast", [name], [_inner(name)], to=kind) for name in inputs]
    last = [helper.make_node("Cast", [_inner(name)], [name], to=TensorProto.FLOAT) for name in outputs]
    nodes = [*first, *nodes, *last]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return made


def _narrowed(node: onnx.NodeProto, kind: int, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    for attribute in node.attribute:
        if attribute.name == "value":
            _narrow_tensor(attribute.t, kind)
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
    node.input[:] = [_inner(name) if name in inputs or name in outputs else name for name in node.input]
    node.output[:] = [_inner(name) if name in outputs else name for name in node.output]
    return node


def _sizes(node: onnx.NodeProto) -> list[str]:
    """Inputs that are float32 in every precision."""
    return list(node.input[1:]) if node.op_type == "Resize" else []


def _angles(graph: onnx.GraphProto) -> set[int]:
    """The sines and cosines, and the nodes that work for nothing else (or for sizes), by their number."""
    readers: dict[str, list[int]] = {}
    size = len(graph.node)  # stands for a reader of sizes
    for number, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(size if name in _sizes(node) else number)
    results = {value.name for value in graph.output}
    found = {size}
    for number in range(len(graph.node) - 1, -1, -1):
        node = graph.node[number]
        users = [user for name in node.output for user in readers.get(name, [])]
        inner = users and found.issuperset(users) and results.isdisjoint(node.output)
        if node.op_type in WAVES or inner:
            found.add(number)
    return found - {size}


def _floats(model: onnx.ModelProto) -> set[str]:
    """Names of the float32 tensors."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _wide(values: list[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]


def _inner(name: str) -> str:
    return f"{name}.narrow"


def _narrow_tensor(tensor: TensorProto, kind: int) -> None:
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    if kind == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
        return
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    upper = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # rounded to the nearest, ties to even
    tensor.CopyFrom(
        TensorProto(name=tensor.name, data_type=TensorProto.BFLOAT16, dims=values.shape, raw_data=upper.tobytes())
    )

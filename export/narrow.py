"""A float32 graph in fp16 or bf16, every number of it: what strongly typed engines are built from.

Inputs and outputs keep their types, casts stand at the edges, so that a narrow graph takes the place of the wide one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from worldmodel.errors import SpecError

TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def narrow(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy of the model in another precision. Weights must lie inside it."""
    if precision not in TYPES:
        raise SpecError(f"a graph cannot be made {precision!r}: use one of {', '.join(TYPES)}")
    kind, made = TYPES[precision], onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for tensor in graph.initializer:
        _narrow_tensor(tensor, kind)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "value":
                _narrow_tensor(attribute.t, kind)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    inputs, outputs = (_wide(values) for values in (graph.input, graph.output))
    for node in graph.node:
        node.input[:] = [_inner(name) if name in inputs or name in outputs else name for name in node.input]
        node.output[:] = [_inner(name) if name in outputs else name for name in node.output]
    first = [helper.make_node("Cast", [name], [_inner(name)], to=kind) for name in inputs]
    last = [helper.make_node("Cast", [_inner(name)], [name], to=TensorProto.FLOAT) for name in outputs]
    nodes = [*first, *graph.node, *last]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return made


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

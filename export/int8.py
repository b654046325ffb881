"""The tick with its largest products in int8: weights as they are stored, activations by ranges seen in play.

    x → QuantizeLinear → DequantizeLinear ─┐
    stored int8 → Transpose → Dequantize… ─┴→ MatMul

Backends make one int8 product of that. Every pass has ranges of its own, as activations differ with the noise level.

A few channels of an activation may be far louder than the rest and would leave it few of the 256 levels. They are kept
apart (LLM.int8(), arXiv:2208.07339): zeros in the int8 product, and a narrow float32 product of their own, added to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Feed = dict[str, np.ndarray]  # a tick's inputs
QUIET = 15 / 16  # the share of an activation's channels that are never kept apart
LOUD = 2.0  # times as far as these a channel reaches that is


@dataclass(frozen=True)
class Linear:
    """A stored int8 weight that multiplies. products: the nodes that do, one for each pass."""

    weight: str
    scale: str
    transposed: str  # the tensor that the products read
    products: tuple[onnx.NodeProto, ...]


def linears(model: onnx.ModelProto) -> dict[str, Linear]:
    """The linear layers of a world's graph whose weights are stored in int8, by weight."""
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "MatMul":
            readers.setdefault(node.input[1], []).append(node)
    found = {}
    for transposed, products in readers.items():
        chain = []
        at: str | None = transposed
        for kind in ("Transpose", "Mul", "Cast"):
            node = makers.get(at or "")
            at = node.input[0] if node is not None and node.op_type == kind else None
            chain.append(node)
        if at in stored:
            assert at is not None and chain[1] is not None
            found[at] = Linear(at, chain[1].input[1], transposed, tuple(products))
    return found


def scales(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Of these layers' weights, one for each output. Weights lie inside the model."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    return {name: numpy_helper.to_array(known[linear.scale]).reshape(-1) for name, linear in linears(model).items()}


def activations(model: onnx.ModelProto) -> dict[str, int]:
    """What is multiplied by these layers, and how many channels it has."""
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return {node.input[0]: sizes[name][1] for name, layer in linears(model).items() for node in layer.products}


@dataclass(frozen=True)
class Range:
    """Of one activation, channel by channel: float32 [channels]."""

    low: np.ndarray
    high: np.ndarray

    @property
    def apart(self) -> np.ndarray:
        """Numbers of the channels that are kept apart, int64; often none."""
        reach = np.maximum(-self.low, self.high)
        return np.flatnonzero(reach > LOUD * np.quantile(reach, QUIET, method="lower"))

    @property
    def rest(self) -> tuple[float, float]:
        """The range of all the others."""
        return float(np.delete(self.low, self.apart).min()), float(np.delete(self.high, self.apart).max())


def calibrate(model: onnx.ModelProto, feeds: Iterable[Feed]) -> dict[str, Range]:
    """The range of every such activation over some ticks. Weights lie inside the model.

    By two reductions for each, in the graph: onnxruntime's calibrator knows one range for a whole activation.
    """
    watched, widths = onnx.ModelProto(), activations(model)
    watched.CopyFrom(model)
    graph, names = watched.graph, list(widths)
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "watched.axis"))
    for name, width in widths.items():
        graph.initializer.append(numpy_helper.from_array(np.array([-1, width]), f"{name}.rows"))
        graph.node.append(helper.make_node("Reshape", [name, f"{name}.rows"], [f"{name}.flat"]))
        for kind in ("Min", "Max"):
            inputs, result = [f"{name}.flat", "watched.axis"], f"{name}.{kind}"
            graph.node.append(helper.make_node(f"Reduce{kind}", inputs, [result], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, [width]))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = [f"{name}.{kind}" for kind in ("Min", "Max") for name in names]
    seen = [session.run(wanted, feed) for feed in feeds]
    by_name = [np.stack(ticks) for ticks in zip(*seen, strict=True)]
    lows, highs = by_name[: len(names)], by_name[len(names) :]
    return {name: Range(low.min(0), high.max(0)) for name, low, high in zip(names, lows, highs, strict=True)}


def with_int8(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    scales: Mapping[str, np.ndarray],
    chosen: Collection[str],
) -> onnx.ModelProto:
    """A copy in which the chosen linear layers (names of weights) multiply in int8.

    model: a graph of a world file; weights may lie outside. scales: of the weights, by name of weight.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    picked = {name: linear for name, linear in linears(made).items() if name in chosen}
    gone = {linear.transposed for linear in picked.values()}
    first: list[onnx.NodeProto] = []
    extra: list[onnx.TensorProto] = []
    for name, linear in picked.items():
        extra.append(numpy_helper.from_array(scales[name], f"{name}.scales"))
        first.append(helper.make_node("Transpose", [name], [f"{name}.turned"], perm=[1, 0]))
        inputs = [f"{name}.turned", f"{name}.scales"]
        first.append(helper.make_node("DequantizeLinear", inputs, [linear.transposed], axis=1))
    by_transposed = {linear.transposed: name for name, linear in picked.items()}
    nodes: list[onnx.NodeProto] = []
    narrowed: set[str] = set()
    for node in made.graph.node:
        if set(node.output) & gone:
            continue
        if node.op_type != "MatMul" or node.input[1] not in gone:
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        if source not in narrowed:
            narrowed.add(source)
            added, constants = narrow_source(source, ranges[source])
            nodes += added
            extra += constants
        node.input[0] = f"{source}.again"
        nodes.append(node)
        if ranges[source].apart.size:
            name = by_transposed[node.input[1]]
            slim, linear = f"{source}.{name}", picked[name]
            first += [
                helper.make_node("Gather", [name, f"{source}.channels"], [f"{slim}.int8"], axis=1),
                helper.make_node("Cast", [f"{slim}.int8"], [f"{slim}.cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{slim}.cast", linear.scale], [f"{slim}.wide"]),
                helper.make_node("Transpose", [f"{slim}.wide"], [f"{slim}.turned"], perm=[1, 0]),
            ]
            node.output[0] = f"{result}.rest"
            nodes.append(helper.make_node("MatMul", [f"{source}.apart", f"{slim}.turned"], [f"{result}.apart"]))
            nodes.append(helper.make_node("Add", [f"{result}.rest", f"{result}.apart"], [result]))
    read = {name for node in [*first, *nodes] for name in node.input}
    results = {value.name for value in made.graph.output}
    while dead := [node for node in nodes if not (set(node.output) & (read | results))]:
        nodes = [node for node in nodes if node not in dead]
        read = {name for node in [*first, *nodes] for name in node.input}
    initializers = [tensor for tensor in [*made.graph.initializer, *extra] if tensor.name in read]
    del made.graph.node[:], made.graph.initializer[:]
    made.graph.node.extend([*first, *nodes])
    made.graph.initializer.extend(initializers)
    return made


def narrow_source(source: str, seen: Range) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """`SOURCE.again`, what is left of an activation in int8; and `SOURCE.apart`, its loud channels, if it has such."""
    nodes, rest = [], source
    scale, zero = affine(*seen.rest)
    constants = [numpy_helper.from_array(scale, f"{source}.scale"), numpy_helper.from_array(zero, f"{source}.zero")]
    if seen.apart.size:
        quiet, rest = np.ones(len(seen.low), np.float32), f"{source}.rest"
        quiet[seen.apart] = 0
        constants.append(numpy_helper.from_array(quiet, f"{source}.quiet"))
        constants.append(numpy_helper.from_array(seen.apart, f"{source}.channels"))
        nodes.append(helper.make_node("Mul", [source, f"{source}.quiet"], [rest]))
        nodes.append(helper.make_node("Gather", [source, f"{source}.channels"], [f"{source}.apart"], axis=-1))
    how = [f"{source}.scale", f"{source}.zero"]
    nodes.append(helper.make_node("QuantizeLinear", [rest, *how], [f"{source}.int8"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{source}.int8", *how], [f"{source}.again"]))
    return nodes, constants


def affine(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 and zero point uint8 that hold a range, 0 included."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return np.array(scale), np.array(np.clip(round(-low / float(scale)), 0, 255), np.uint8)

"""The tick with its largest products in int8: weights as they are stored, activations by ranges seen in play.

    x → QuantizeLinear → DequantizeLinear ─┐
    stored int8 → Transpose → Dequantize… ─┴→ MatMul

Backends make one int8 product of that. Every pass has ranges of its own, as activations differ with the noise level.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper, numpy_helper

Feed = dict[str, np.ndarray]  # a tick's inputs


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


def activations(model: onnx.ModelProto) -> set[str]:
    """What is multiplied by these layers."""
    return {node.input[0] for linear in linears(model).values() for node in linear.products}


def calibrate(model: onnx.ModelProto, feeds: Iterable[Feed]) -> dict[str, tuple[float, float]]:
    """The range of every such activation over some ticks, by onnxruntime's calibrator. Weights lie inside the model."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    wanted = activations(model)
    with TemporaryDirectory(prefix="worldloop-") as folder:
        plain, augmented = Path(folder, "plain.onnx"), Path(folder, "augmented.onnx")
        onnx.save(model, plain)
        calibrator = create_calibrator(
            plain, ["MatMul"], augmented_model_path=str(augmented), calibrate_method=CalibrationMethod.MinMax
        )
        calibrator.collect_data(Reader())
        ranges = {name: data.range_value for name, data in calibrator.compute_data().items() if name in wanted}
    return {name: (float(np.min(low)), float(np.max(high))) for name, (low, high) in ranges.items()}


def with_int8(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
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
    nodes: list[onnx.NodeProto] = []
    narrowed: set[str] = set()
    for node in made.graph.node:
        if set(node.output) & gone:
            continue
        if node.op_type == "MatMul" and node.input[1] in gone:
            source = node.input[0]
            if source not in narrowed:
                narrowed.add(source)
                scale, zero = affine(*ranges[source])
                extra.append(numpy_helper.from_array(scale, f"{source}.scale"))
                extra.append(numpy_helper.from_array(zero, f"{source}.zero"))
                how = [f"{source}.scale", f"{source}.zero"]
                nodes.append(helper.make_node("QuantizeLinear", [source, *how], [f"{source}.int8"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{source}.int8", *how], [f"{source}.again"]))
            node.input[0] = f"{source}.again"
        nodes.append(node)
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


def affine(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 and zero point uint8 that hold a range, 0 included."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-6) / 255)
    return np.array(scale), np.array(np.clip(round(-low / float(scale)), 0, 255), np.uint8)

"""Read the outside of an ONNX graph without running or allocating it: its inputs, outputs, and where its weights lie.

A graph from a world file goes to a backend only after `check_graph`: inputs and outputs as the manifest says, weights
inside the world's own files, no operators from unknown libraries. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from runtime.errors import WorldFileError

ELEMENT_TYPES = {1: "float32", 2: "uint8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
DOMAINS = {"", "ai.onnx", "com.microsoft", "pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common", "pkg.torch"}
MAX_DEPTH = 16  # of graphs inside graphs

Shape = tuple[int | None, ...]  # None: any size (the number of players)
Fields = list[tuple[int, int, "int | memoryview"]]  # field number, wire type, value


@dataclass
class Weights:
    """Where one tensor's values lie, outside the graph."""

    tensor: str
    location: str
    offset: int
    length: int | None


@dataclass
class Header:
    inputs: dict[str, tuple[str, Shape]] = field(default_factory=dict)  # name: (dtype, shape)
    outputs: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    weights: list[Weights] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)


def read_header(graph: bytes, where: str) -> Header:
    """The header of a serialized ModelProto."""
    header = Header()
    try:
        for number, _, value in _fields(memoryview(graph)):
            if number == 7:  # graph
                _graph(_message(value), header, top=True, depth=0)
            elif number == 8:  # opset_import
                header.domains.add(_text(_one(_fields(_message(value)), 1, b"")))
            elif number == 25:  # functions
                for inner, _, node in _fields(_message(value)):
                    if inner == 7:
                        _node(_message(node), header, 0)
    except (ValueError, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise WorldFileError(f"{where} is not an ONNX graph ({error}): export the world again") from error
    if not header.outputs:
        raise WorldFileError(f"{where} is not an ONNX graph (no outputs): export the world again")
    return header


def check_graph(
    graph: bytes,
    where: str,
    inputs: Mapping[str, tuple[str, Shape]],
    outputs: Mapping[str, tuple[str, Shape]],
    sizes: Mapping[str, int],
) -> Header:
    """Refuse a graph that asks for or gives anything but what the manifest says.

    A graph may leave out inputs it does not need and state that it does not change. sizes: bytes of every file.
    """
    header = read_header(graph, where)
    for kind, found, allowed in (("input", header.inputs, inputs), ("output", header.outputs, outputs)):
        for name, (dtype, shape) in found.items():
            if name not in allowed:
                raise WorldFileError(f"{where}: unknown {kind} {name!r}: export the world again")
            wanted_dtype, wanted = allowed[name]
            fits = len(shape) == len(wanted) and all(
                a is None or b is None or a == b for a, b in zip(shape, wanted, strict=True)
            )
            if dtype != wanted_dtype or not fits:
                got = f"{dtype} {_show(shape)}"
                raise WorldFileError(f"{where}: {kind} {name} must be {wanted_dtype} {_show(wanted)}, got {got}")
    for weights in header.weights:
        folder = where.rsplit("/", 1)[0] if "/" in where else ""
        _check_weights(weights, folder, where, sizes)
    if unknown := header.domains - DOMAINS:
        raise WorldFileError(f"{where}: operators from {', '.join(sorted(unknown))}, which no backend here has")
    return header


def _check_weights(weights: Weights, folder: str, where: str, sizes: Mapping[str, int]) -> None:
    file = _join(folder, weights.location)
    if file not in sizes:
        raise WorldFileError(
            f"{where}: {weights.tensor} lies in {weights.location[:80]!r}, which is no file of this world"
        )
    end = weights.offset + (weights.length or 0)
    if weights.offset < 0 or (weights.length or 0) < 0 or end > sizes[file]:
        raise WorldFileError(f"{where}: {weights.tensor} reaches beyond the end of {file}: export the world again")


def _join(folder: str, location: str) -> str:
    """`../weights/a` seen from `graphs` is `weights/a`; a path that leaves the world is given back as it is."""
    parts = folder.split("/") if folder else []
    for part in location.split("/"):
        if part == "..":
            if not parts:
                return location
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _graph(message: memoryview, header: Header, top: bool, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("graphs inside graphs, too deep")
    initializers = set()
    described = {}
    for number, _, value in _fields(message):
        if number == 1:  # node
            _node(_message(value), header, depth)
        elif number == 5:  # initializer
            initializers.add(_tensor(_message(value), header))
        elif number == 11 and top:  # input
            name, kind = _value_info(_message(value))
            described[name] = kind
        elif number == 12 and top:  # output
            name, kind = _value_info(_message(value))
            header.outputs[name] = kind
        elif number == 15:  # sparse_initializer
            for _, _, part in _fields(_message(value)):
                if not isinstance(part, int):
                    _tensor(part, header)
    if top:
        header.inputs = {name: kind for name, kind in described.items() if name not in initializers}


def _node(message: memoryview, header: Header, depth: int) -> None:
    for number, _, value in _fields(message):
        if number == 7:  # domain
            header.domains.add(_text(value))
        elif number == 5:  # attribute
            for inner, _, part in _fields(_message(value)):
                if inner in (5, 10):  # t, tensors
                    _tensor(_message(part), header)
                elif inner in (6, 11):  # g, graphs
                    _graph(_message(part), header, top=False, depth=depth + 1)


def _tensor(message: memoryview, header: Header) -> str:
    """Note where the values lie, if outside; give the tensor's name."""
    name, outside, external = "", {}, False
    for number, _, value in _fields(message):
        if number == 8:
            name = _text(value)
        elif number == 13:  # external_data: key, value
            entry = _fields(_message(value))
            outside[_text(_one(entry, 1, b""))] = _text(_one(entry, 2, b""))
        elif number == 14:  # data_location: 1 = external
            external = value == 1
    if external or outside:
        length = int(outside["length"]) if "length" in outside else None
        header.weights.append(Weights(name, outside.get("location", ""), int(outside.get("offset", "0")), length))
    return name


def _value_info(message: memoryview) -> tuple[str, tuple[str, Shape]]:
    fields = _fields(message)
    name = _text(_one(fields, 1, b""))
    tensor = _fields(_message(_one(_fields(_message(_one(fields, 2, b""))), 1, b"")))
    element = _one(tensor, 1, 0)
    shape: list[int | None] = []
    for number, _, dimension in _fields(_message(_one(tensor, 2, b""))):
        if number == 1:
            size = _one(_fields(_message(dimension)), 1, None)
            shape.append(size if isinstance(size, int) else None)
    return name, (ELEMENT_TYPES.get(element if isinstance(element, int) else 0, f"type {element}"), tuple(shape))


def _fields(message: memoryview | bytes) -> Fields:
    return list(_walk(memoryview(message)))


def _walk(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of one protobuf message, in order; groups are not used by ONNX."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, wire, value
        else:
            size, at = _varint(message, at) if wire == 2 else (_fixed_size(wire), at)
            if at + size > len(message):
                raise ValueError("cut off")
            yield number, wire, message[at : at + size]
            at += size


def _fixed_size(wire: int) -> int:
    if wire not in (1, 5):
        raise ValueError("not protobuf")
    return 8 if wire == 1 else 4


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("not protobuf")


def _one(fields: Fields, number: int, default: object) -> object:
    """The last field of this number, as protobuf says."""
    found = default
    for candidate, _, value in fields:
        if candidate == number:
            found = value
    return found


def _message(value: object) -> memoryview:
    if not isinstance(value, (memoryview, bytes)):
        raise ValueError("not protobuf of this kind")
    return memoryview(value)


def _text(value: object) -> str:
    return bytes(_message(value)).decode("utf-8")


def _show(shape: Shape) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"

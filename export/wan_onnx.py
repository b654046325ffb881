"""The block of an imported Wan world as an ONNX graph: all passes of a steady tick, the commit, the decoder.

Inputs `state.NAME`… and `noise`; outputs `next.NAME`… of what changes; the pictures are `next.queue`. Axis 0 of
everything is the number of players, left open. What the schedule and the cache decide is the same in every tick once
the cache is full, so the graph holds it as constants; players may differ in all else, in the length of their games too.

    write_block(world, state, folder)    # block.onnx, and its weights beside it in a file of any size
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.quantize import PREFIX, outside, safetensors_header
from worldmodel.cache import attention, base, sink_window
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.errors import SpecError
from worldmodel.families import wan_transformer
from worldmodel.families.wan_world import WanWorld
from worldmodel.schedule import sampler

OPSET = 20  # the newest that this exporter writes
PLAYERS = "players"  # the open axis, as that of native worlds' graphs is called
GRAPH, WEIGHTS = "block.onnx", "block.safetensors"  # one protobuf holds 2 GB; a file of weights has no such limit
TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
}
State = dict[str, Tensor]


class BlockGraph(nn.Module):
    """The block over a flat list of state tensors in the order of `names`; gives those of `changed`."""

    def __init__(self, world: WanWorld, names: list[str], changed: list[str]) -> None:
        super().__init__()
        self.world, self.names, self.changed = world, names, changed

    def forward(self, noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        after = block(self.world, dict(zip(self.names, state, strict=True)), noise)
        return tuple(after[name] for name in self.changed)


def block(world: WanWorld, state: State, noise: Tensor) -> State:
    """The state after the next block; its pictures are in `queue`."""
    return world._make(state, noise.new_zeros(len(noise), world.about.action_dim), noise)


@torch.no_grad()
def steady_state(world: WanWorld, prompt: Tensor) -> State:
    """A state of the world with a full cache, from zero noise. prompt: [1, rows, dim]."""
    like = next(world.transformer.parameters())
    state = {
        name: torch.zeros(*shape, dtype=dtype, device=like.device)
        for name, (shape, dtype) in world.state_shapes().items()
    }
    state = world.recache(state, prompt.to(like))
    cache, noise = world.spec.cache, torch.zeros(1, *world.about.noise_shape, dtype=like.dtype, device=like.device)
    while int(state["cache.next"].min()) < cache.slots + cache.chunk:
        state = block(world, state, noise)
    return state


def write_block(world: WanWorld, state: State, folder: Path) -> Path:
    """Trace the block on a state from `steady_state`, in the world's own precision; gives the graph's file.

    The weights are written one after the other, never all copied.
    """
    model = trace_block(world, state)
    weights = weights_of(world, model)
    described = {
        name: (TYPES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in weights.items()
    }
    header, places = safetensors_header(described)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(header)
        for name in places:
            file.write(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for name, (kind, shape, _) in described.items():
        model.graph.initializer.append(outside(name, kind, shape, WEIGHTS, places[name]))
    onnx.save(model, folder / GRAPH)
    onnx.checker.check_model(folder / GRAPH, full_check=True)
    return folder / GRAPH


def export_block(world: WanWorld, state: State) -> onnx.ModelProto:
    """The same with the weights inside, for small worlds. float32 or fp16."""
    model = trace_block(world, state)
    for name, tensor in weights_of(world, model).items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor.detach().cpu().numpy(), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def weights_of(world: WanWorld, model: onnx.ModelProto) -> State:
    """Takes the weights, which tracing leaves as inputs, from the graph's inputs; gives them by the same names."""
    known = {f"{PREFIX}{name}": part for name, part in [*world.named_parameters(), *world.named_buffers()]}
    names = [value.name for value in model.graph.input if value.name in known]
    kept = [value for value in model.graph.input if value.name not in known]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return {name: known[name] for name in names}


@torch.no_grad()
def trace_block(world: WanWorld, state: State) -> onnx.ModelProto:
    """The graph, its weights among its inputs. One player is traced, whose state is large, and any number may play."""
    about = world.about
    if about.buttons or world.spec.guidance is not None or not isinstance(world.spec.cache, SinkWindow):
        raise SpecError(
            f"{about.title}: only worlds with a sink and a window, steered by text alone and without guidance, become "
            "graphs so far"
        )
    like = next(world.transformer.parameters())
    noise = torch.zeros(1, *about.noise_shape, dtype=like.dtype, device=like.device)
    after = block(world, state, noise)
    names = list(state)
    changed = {name: after[name].shape for name in names if after[name] is not state[name]}
    del after  # as large as the cache; tracing makes more of them
    inputs, outputs = ["noise", *(f"state.{name}" for name in names)], [f"next.{name}" for name in changed]
    file: Any = io.BytesIO()  # torch writes to open files as well, without saying so
    with exportable(world), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes and decisions become constants: that is what the graph is for
        torch.onnx.export(
            BlockGraph(world, names, list(changed)).eval(), (noise, *state.values()), file, dynamo=False,
            opset_version=OPSET, export_params=False, do_constant_folding=False,  # which makes new weights of old ones
            input_names=inputs, output_names=outputs,
            dynamic_axes={name: {0: PLAYERS} for name in (*inputs, *outputs)},
        )  # fmt: skip
    model = onnx.load_model_from_string(file.getvalue())
    tidy(model)
    for value in model.graph.output:
        shape = changed[value.name.removeprefix("next.")]
        sizes = [onnx.TensorShapeProto.Dimension(dim_value=size) for size in shape[1:]]
        players = onnx.TensorShapeProto.Dimension(dim_param=PLAYERS)
        value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=[players, *sizes]))
    return model


def tidy(model: onnx.ModelProto) -> None:
    """Two things that backends do not take: axes counted from the end, and bytes that are moved around."""
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Transpose":
            continue
        order = node.attribute[0].ints
        order[:] = [axis % len(order) for axis in order]
        cast = makers.get(node.input[0])
        if cast is not None and cast.op_type == "Cast" and cast.attribute[0].i == onnx.TensorProto.UINT8:
            # first turned, then made bytes
            (source,), (result,), between = cast.input, node.output, f"{node.output[0]}.turned"
            turn, byte = onnx.NodeProto(), onnx.NodeProto()
            turn.CopyFrom(node)
            byte.CopyFrom(cast)
            turn.input[:], turn.output[:], byte.input[:], byte.output[:] = [source], [between], [between], [result]
            cast.CopyFrom(turn)
            node.CopyFrom(byte)


@contextlib.contextmanager
def exportable(world: WanWorld) -> Iterator[None]:
    """Without what the exporter gets wrong, and without complex numbers, which ONNX does not have: a turn is its angle,
    and rotating takes its cosine."""

    def unit(angle: Tensor) -> Tensor:
        return angle.float()

    def rotate(x: Tensor, turn: Tensor) -> Tensor:
        turning = 2 * turn.shape[-1]
        first, second = x[..., 0:turning:2].float(), x[..., 1:turning:2].float()
        cos, sin = turn.cos(), turn.sin()
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
        return torch.cat([turned.type_as(x), x[..., turning:]], -1) if turning < x.shape[-1] else turned.type_as(x)

    def reshape(x: Tensor, sizes: list[int]) -> Tensor:
        """With plain sizes, from which the first axis follows: that of the players, or of them with what comes next.
        A tensor of no frames does not tell, and silent ones leave such behind; nothing reads them."""
        return x.reshape(-1 if math.prod(sizes) else sizes[0], *sizes[1:])

    def flatten(x: Tensor, start: int = 0, end: int = -1) -> Tensor:
        shape, first, last = [int(size) for size in x.shape], start % x.dim(), end % x.dim()
        return reshape(x, [*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]])

    def unflatten(x: Tensor, axis: int, sizes: tuple[int, ...]) -> Tensor:
        shape, at = [int(size) for size in x.shape], axis % x.dim()
        known = math.prod(int(size) for size in sizes if size != -1)
        whole = [shape[at] // known if size == -1 else int(size) for size in sizes]
        return reshape(x, [*shape[:at], *whole, *shape[at + 1 :]])

    def addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
        """The exporter's own multiplies by a float32 one, which narrow graphs do not take."""
        return x + a * b * value if value != 1 else x + a * b

    def places(store: Tensor, slots: Tensor) -> Tensor:
        """The slots [players, n] of every layer, counted through the whole store: [players · layers · n]."""
        layers, count = (torch.arange(int(size), device=store.device) for size in store.shape[1:3])
        players = torch.arange(slots.shape[0], device=store.device)
        row = players[:, None, None] * len(layers) + layers[:, None]
        return (row * len(count) + slots[:, None]).flatten()

    def take(store: Tensor, slots: Tensor) -> Tensor:
        layers, count = int(store.shape[1]), int(slots.shape[1])
        return store.flatten(0, 2).index_select(0, places(store, slots)).unflatten(0, (-1, layers, count))

    def write(
        store: Tensor, slots: Tensor, value: Tensor, live: Tensor | None = None, in_place: bool = False
    ) -> Tensor:
        """Into a new store, always: the exporter loses what is written into a view."""
        assert live is None, "a steady tick writes whole blocks"
        rows = value.flatten(0, 2).to(store.dtype)
        written = store.flatten(0, 2).index_put((places(store, slots),), rows)
        return written.unflatten(0, (-1, *(int(size) for size in store.shape[1:3])))

    remembered = world.transformer._places, world.transformer._turns
    world.transformer._places, world.transformer._turns = {}, {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(Tensor, "flatten", flatten))
        stack.enter_context(exchanged(Tensor, "unflatten", unflatten))
        stack.enter_context(exchanged(torch, "addcmul", addcmul))
        stack.enter_context(exchanged(base, "_take", take))
        stack.enter_context(exchanged(world.stream, "in_place", True))  # no copies to write into, as nothing is
        for writer in (sink_window, sampler):
            stack.enter_context(exchanged(writer, "write", write))
        for module in (attention, wan_transformer):
            stack.enter_context(exchanged(module, "rotate", rotate))
            stack.enter_context(exchanged(module, "unit", unit))
        try:
            yield
        finally:
            world.transformer._places, world.transformer._turns = remembered


@contextlib.contextmanager
def exchanged(owner: Any, name: str, other: Any) -> Iterator[None]:
    """Another attribute for a while."""
    own = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, own)

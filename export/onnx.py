"""Torch → ONNX: the ticks and the recache of a native world as graphs whose state is inputs and outputs.

Inputs `state.NAME`…, `action`, `prompt`, `noise`; outputs `frame` and `next.NAME`… for the state that changes. Axis 0
of everything is the number of players, left open.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from onnxscript import optimizer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export.quantize import SMALL
from export.ticks import Tick, ticks
from worldmodel.begin import begin, context_frames
from worldmodel.condition.native import buttons
from worldmodel.tick import World, recache, state_shapes

OPSET = 20  # 23 keeps attention as one operator, which openvino and onnxruntime run no faster
MOST_PLAYERS = 1024
TRACED_PLAYERS = 2  # with one, torch takes the number of players for a constant


@dataclass(frozen=True)
class Graphs:
    """by_name: those of export/ticks.py, recache and begin, with all weights inside. flops_per_tick: of one player."""

    by_name: dict[str, onnx.ModelProto]
    flops_per_tick: int


class TickGraph(nn.Module):
    """A tick over a flat list of state tensors, in the order of `names`; gives the frame and those of `changed`."""

    def __init__(self, world: World, make: Tick, names: list[str], changed: list[str]) -> None:
        super().__init__()
        self.world, self.make, self.names, self.changed = world, make, names, changed

    def forward(self, action: Tensor, prompt: Tensor, noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        frame, after = self.make(self.world, dict(zip(self.names, state, strict=True)), action, prompt, noise)
        return frame, *(after[name] for name in self.changed)


class RecacheGraph(nn.Module):
    """The recache over a flat list of state tensors; gives those of `changed`."""

    def __init__(self, world: World, names: list[str], changed: list[str]) -> None:
        super().__init__()
        self.world, self.names, self.changed = world, names, changed

    def forward(self, prompt: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        after = recache(self.world, dict(zip(self.names, state, strict=True)), prompt)
        return tuple(after[name] for name in self.changed)


class BeginGraph(nn.Module):
    """From real frames to the state tensors of `made`; and the last frame as the codec shows it."""

    def __init__(self, world: World, made: list[str]) -> None:
        super().__init__()
        self.world, self.made = world, made

    def forward(self, frames: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        state = begin(self.world, frames, actions)
        return self.world.codec.picture(state["latents"][:, -1]), *(state[name] for name in self.made)


@torch.no_grad()
def export_graphs(world: World) -> Graphs:
    """Trace all graphs on the zero state of a few players."""
    world = world.eval().float()
    spec = world.spec
    state = {
        name: torch.zeros(TRACED_PLAYERS, *shape[1:], dtype=dtype)
        for name, (shape, dtype) in state_shapes(spec).items()
    }
    names = list(state)
    given = [f"state.{name}" for name in names]
    action = torch.zeros(TRACED_PLAYERS, len(buttons(spec)))
    prompt = torch.zeros(TRACED_PLAYERS, spec.prompt_tokens, spec.prompt_dim)
    graphs, flops = {}, {}
    for graph, way in ticks(spec).items():
        noise = torch.zeros(TRACED_PLAYERS, *way.noise)
        with FlopCounterMode(display=False) as counter:
            _, after = way.make(world, state, action, prompt, noise)
        flops[graph] = counter.get_total_flops() // TRACED_PLAYERS
        changed = [name for name in names if after[name] is not state[name]]
        graphs[graph] = trace(
            TickGraph(world, way.make, names, changed),
            (action, prompt, noise, *state.values()),
            ["action", "prompt", "noise", *given],
            ["frame", *(f"next.{name}" for name in changed)],
        )
    renewed = recache(world, state, prompt)
    recached = [name for name in names if renewed[name] is not state[name]]
    graphs["recache"] = trace(
        RecacheGraph(world, names, recached),
        (prompt, *state.values()),
        ["prompt", *given],
        [f"next.{name}" for name in recached],
    )
    begun = [name for name in names if name not in recached]
    context = context_frames(spec)
    frames = torch.zeros(TRACED_PLAYERS, context, spec.height, spec.width, 3, dtype=torch.uint8)
    graphs["begin"] = trace(
        BeginGraph(world, begun),
        (frames, torch.zeros(TRACED_PLAYERS, context, action.shape[1])),
        ["frames", "actions"],
        ["frame", *(f"next.{name}" for name in begun)],
    )
    return Graphs(graphs, flops["tick"])


def trace(module: nn.Module, arguments: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """One graph. Inputs that it does not read are dropped."""
    players = torch.export.Dim("players", min=1, max=MOST_PLAYERS)
    fixed = len(inputs) - sum(name.startswith("state.") for name in inputs)
    state = tuple({0: players} for _ in inputs[fixed:])
    shapes = (*({0: players} for _ in range(fixed)), *([state] if state else []))
    with quiet():
        program = torch.onnx.export(
            module.eval(), arguments, input_names=inputs, output_names=outputs, opset_version=OPSET,
            dynamic_shapes=shapes, dynamo=True, optimize=False, external_data=False, verbose=False,
        )  # fmt: skip
        assert program is not None, "torch.onnx.export gives a program when dynamo is on"
        # Folding and merging first leaves the slow search for patterns a third of the nodes.
        optimizer.fold_constants(program.model, should_fold=fold_small)
        optimizer.remove_unused_nodes(program.model)
        CommonSubexpressionEliminationPass()(program.model)
        optimizer.optimize_ir(program.model, should_fold=fold_small)
    model = program.model_proto
    read = {name for node in model.graph.node for name in node.input}
    for value in [value for value in model.graph.input if value.name not in read]:
        model.graph.input.remove(value)
    del model.graph.value_info[:]  # shapes of intermediate results: a third of the file, and every backend infers them
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model


def fold_small(node: ir.Node) -> bool | None:
    """Weights stay as torch knows them, so that all graphs share them; backends turn and reshape them."""
    constants = [value.const_value for value in node.inputs if value is not None and value.const_value is not None]
    return False if any(constant.size >= SMALL for constant in constants) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch.onnx warns of packages that nobody here needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""The rollback of a world with frames in flight as a graph of its own, `reprime`, beside `tick`."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from export.onnx import TRACED_PLAYERS, trace
from worldmodel.spec import WorldSpec
from worldmodel.tick import World, count_noises, reprime, state_shapes


class ReprimeGraph(nn.Module):
    """The reprime over a flat list of state tensors in the order of `names`; gives the frame and those of `changed`."""

    def __init__(self, world: World, names: list[str], changed: list[str]) -> None:
        super().__init__()
        self.world, self.names, self.changed = world, names, changed

    def forward(self, action: Tensor, prompt: Tensor, noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        frame, after = reprime(self.world, dict(zip(self.names, state, strict=True)), action, prompt, noise)
        return frame, *(after[name] for name in self.changed)


def reprime_noise(spec: WorldSpec) -> tuple[int, int, int, int]:
    """Shape of the noise of one rollback, one player."""
    return (count_noises(spec.schedule.reprime), *spec.latent_shape)


@torch.no_grad()
def reprime_graphs(world: World) -> dict[str, onnx.ModelProto]:
    """{"reprime": graph}, or nothing for a world that makes one frame at a time."""
    spec = world.spec
    if spec.schedule.frames == 1:
        return {}
    world = world.eval().float()
    shapes = state_shapes(spec)
    state = {name: torch.zeros(TRACED_PLAYERS, *shape[1:], dtype=dtype) for name, (shape, dtype) in shapes.items()}
    action = torch.zeros(TRACED_PLAYERS, len(spec.actions))
    prompt = torch.zeros(TRACED_PLAYERS, spec.prompt_tokens, spec.prompt_dim)
    noise = torch.zeros(TRACED_PLAYERS, *reprime_noise(spec))
    _, after = reprime(world, state, action, prompt, noise)
    changed = [name for name in state if after[name] is not state[name]]
    graph = trace(
        ReprimeGraph(world, list(state), changed),
        (action, prompt, noise, *state.values()),
        ["action", "prompt", "noise", *(f"state.{name}" for name in state)],
        ["frame", *(f"next.{name}" for name in changed)],
    )
    return {"reprime": graph}

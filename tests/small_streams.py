"""A tiny transformer with random weights, and streams made of it."""

import torch

from worldmodel.condition.wan_actions import ActionSpec
from worldmodel.families.wan_transformer import WanSpec, WanTransformer
from worldmodel.schedule.plan import FlowTable
from worldmodel.schedule.sampler import Stream

torch.set_num_threads(1)  # nothing here is large enough to share

SIZE = (4, 6)  # latent rows and columns
TABLE = FlowTable(shift=5.0)
FEW = TABLE.warp((1000, 500))
ROLLING = TABLE.warp((1000, 750, 500, 250))


def transformer(layers: int = 2, **differences) -> WanTransformer:
    torch.manual_seed(0)
    spec = WanSpec(
        **{"dim": 24, "ffn_dim": 32, "heads": 2, "layers": layers, "freq_dim": 16, "in_channels": 4, "out_channels": 4}
        | {"text_dim": 8}
        | differences
    )
    model = WanTransformer(spec)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


ACTIONS = ActionSpec(layers=(0,), heads=2, keys=3, mouse=2, embedding=4, mouse_dim=16, keyboard_dim=16, turned=4)


def prompt(seed: int = 1, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 5, 8, generator=torch.Generator().manual_seed(seed))


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def play(stream: Stream, state, ticks: int, seed: int = 0, steer=None) -> tuple[torch.Tensor, dict]:
    """Make so many blocks. Every tick's noise and conditions follow from its number alone."""
    made, chunk, batch = [], stream.cache.chunk, state["phase"].shape[0]
    for tick in range(ticks):
        plan = stream.plan(state)
        noise = random(1, stream.noises(plan) * chunk, 4, *stream.size, seed=1000 * seed + tick).expand(
            batch, -1, -1, -1, -1
        )
        told = {} if steer is None else {name: part[:, : plan.lanes * chunk] for name, part in steer(tick).items()}
        latents, state = stream.tick(state, noise, told)
        made.append(latents)
    return torch.cat(made, 1), state


def started(stream: Stream, batch: int = 1, seed: int = 1) -> dict:
    state = stream.prompted(stream.empty(batch), prompt(seed).expand(batch, -1, -1))
    if stream.guidance is not None:
        state = stream.prompted(state, prompt(99).expand(batch, -1, -1), branch="uncond.")
    return state

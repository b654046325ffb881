"""The tick of a native world: generator + cache + schedule + codec as one pure function of arrays.

    frame, state' = tick(state, action, prompt, noise)

The pass that commits the last clean frame to the cache rides in the first denoising pass of the next tick (exact,
because the clean frame does not see the noisy ones; algorithms.md A.5). Keys are cached without their turn in time;
where they stand is data (`position`), and the sink always stands right before the window (re-anchored, as in
Rolling Forcing).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldmodel.codec.small import Codec
from worldmodel.schedule.table import Pass, ScheduleTable
from worldmodel.spec import WorldSpec
from worldmodel.transformer.clip import clean_layer, recent_frames
from worldmodel.transformer.generator import RECENT, Block, Generator, attend, turn_time

State = dict[str, Tensor]


class World(nn.Module):
    """All weights of a native world."""

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codec = Codec(spec.codec, spec.height, spec.width, spec.codec.down * spec.generator.patch)
        self.generator = Generator(spec)


def state_shapes(
    spec: WorldSpec, schedule: ScheduleTable | None = None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name to shape (one player) and dtype of everything that a world remembers.

    frame: number of the newest shown frame, which is not in the cache yet ("pending")
    position: frame in each slot of the cache; slot 0 is the sink
    latents: clean latents of the sink, of the window, and of the pending frame
    sink_actions, actions: what led to them, with history; the last entry led to the pending frame
    flight: frames still being denoised, the oldest first, each at its own noise level (rolling schedules only)
    kv.N: keys and values of block N, not turned in time
    """
    schedule = schedule or spec.schedule
    sizes, latent = spec.generator, spec.latent_shape
    slots, heads = spec.sink + spec.window, (sizes.heads, sizes.head_dim)
    history, actions = sizes.action_history, len(spec.actions)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "frame": ((1,), torch.int64),
        "position": ((1, slots), torch.int64),
        "latents": ((1, slots + 1, *latent), torch.float32),
        "sink_actions": ((1, history, actions), torch.float32),
        "actions": ((1, spec.window + history, actions), torch.float32),
    }
    if schedule.frames > 1:
        shapes["flight"] = ((1, schedule.frames - 1, *latent), torch.float32)
    for layer in range(sizes.depth):
        shapes[f"kv.{layer}"] = ((1, 2, slots, spec.tokens, *heads), torch.float32)
    return shapes


def start(world: World, latents: Tensor, actions: Tensor, schedule: ScheduleTable | None = None) -> State:
    """The state of a world that has just shown the last of `latents`; call `recache` on it before the first tick.

    latents: [batch, 1 + window + 1, channels, rows, columns], the sink and the frames before play.
    actions: [batch, 1 + window + 1, history, action_dim], what led to each.
    """
    spec, batch = world.spec, latents.shape[0]
    schedule = schedule or spec.schedule
    device = latents.device
    state: State = {
        "frame": torch.full((batch,), spec.window + 1, device=device),
        "position": torch.arange(spec.window + 1, device=device).expand(batch, -1).contiguous(),
        "latents": latents.float(),
        "sink_actions": actions[:, 0].float(),
        "actions": torch.cat([actions[:, 1, :-1], actions[:, 1:, -1]], 1).float(),
    }
    if schedule.frames > 1:
        state["flight"] = latents[:, -1:].float().expand(-1, schedule.frames - 1, -1, -1, -1).contiguous()
    for name, (shape, dtype) in state_shapes(spec, schedule).items():
        if name.startswith("kv."):
            state[name] = torch.zeros(batch, *shape[1:], dtype=dtype, device=device)
    return state


def recache(world: World, state: State, prompt: Tensor) -> State:
    """Renew the keys and values of all cached frames under a prompt (LongLive's KV-recache, arXiv:2509.22622).

    prompt: [batch, prompt_tokens, prompt_dim].
    """
    generator, window = world.generator, world.spec.window
    latents = state["latents"][:, :-1]
    batch, frames = latents.shape[:2]
    history = world.spec.generator.action_history
    past = [state["actions"][:, i : i + history] for i in range(window)]
    actions = torch.stack([state["sink_actions"], *past], 1)
    sigma = torch.zeros(batch, frames, device=latents.device)
    condition = generator.condition(sigma, actions, prompt.unsqueeze(1).expand(-1, frames, -1, -1))
    shared = generator.shared_modulation(condition)
    x = generator.tokens(latents, recent_frames(latents))
    renewed = dict(state)
    for layer, block in enumerate(generator.layers):
        x, k, v = clean_layer(block, x, shared, window, generator.space_cos, generator.space_sin)
        renewed[f"kv.{layer}"] = torch.stack([k, v], 1).to(state[f"kv.{layer}"].dtype)
    return renewed


def tick(
    world: World, state: State, action: Tensor, prompt: Tensor, noise: Tensor, schedule: ScheduleTable | None = None
) -> tuple[Tensor, State]:
    """Make the next frame and the state after it. Equal arguments give equal results.

    action: [batch, action_dim]. prompt: [batch, prompt_tokens, prompt_dim].
    noise: [batch, schedule.noises, channels, rows, columns], standard normal.
    Returns uint8 [batch, height, width, 3] and the state for the next call.
    """
    latent, state = next_latent(world, state, action, prompt, noise, schedule)
    return world.codec.picture(latent), state


def reprime(
    world: World, state: State, action: Tensor, prompt: Tensor, noise: Tensor, schedule: ScheduleTable | None = None
) -> tuple[Tensor, State]:
    """`tick` for a changed action in a world with frames in flight: they are dropped and made anew (rollback).

    The frame and the state after it do not depend on what was in flight, so they are those of a game in which the
    action was known all along. noise: [batch, count_noises(schedule.reprime), channels, rows, columns].
    """
    schedule = schedule or world.spec.schedule
    latent, state = _walk(world, state, action, prompt, noise, schedule.reprime, schedule.frames)
    return world.codec.picture(latent), state


def count_noises(passes: tuple[Pass, ...]) -> int:
    """Noise tensors that a tick of these passes uses."""
    return sum(step.noises for step in passes)


def next_latent(
    world: World, state: State, action: Tensor, prompt: Tensor, noise: Tensor, schedule: ScheduleTable | None = None
) -> tuple[Tensor, State]:
    """`tick` without the decoder: the next clean latent [batch, channels, rows, columns] and the state after it."""
    schedule = schedule or world.spec.schedule
    return _walk(world, state, action, prompt, noise, schedule.steady, schedule.frames, state.get("flight"))


def _walk(
    world: World, state: State, action: Tensor, prompt: Tensor, noise: Tensor, passes: tuple[Pass, ...], flying: int,
    flight: Tensor | None = None,
) -> tuple[Tensor, State]:  # fmt: skip
    """The passes of one tick. flying: frames in flight in the last pass, of which the oldest leaves."""
    generator, history = world.generator, world.spec.generator.action_history
    noises = iter(noise.unbind(1))
    shown = state["latents"][:, -1 - RECENT :]  # the pending frame and those before it
    # Frames in flight carry the newest action: the oldest leaves with it, for the others it is a prediction.
    past = torch.cat([state["actions"], action.unsqueeze(1).expand(-1, flying, -1)], 1)
    known = past.shape[1]
    told = torch.stack([past[:, end - history : end] for end in range(known - flying, known + 1)], 1)

    memory = [
        _Remembered(state[f"kv.{layer}"], state["position"], state["frame"]) for layer in range(len(generator.blocks))
    ]
    for number, step in enumerate(passes):
        first = number == 0  # the pending frame rides along, and is committed
        if step.enters:
            new = next(noises).unsqueeze(1)
            flight = new if flight is None else torch.cat([flight, new], 1)
        assert flight is not None, "a tick's first pass lets a frame in"
        count = flight.shape[1]
        line = torch.cat([shown, flight], 1)
        fresh = count + 1 if first else count
        frames, total = line[:, -fresh:], line.shape[1]
        recent = torch.cat([line[:, total - fresh - back : total - back] for back in range(1, RECENT + 1)], 2)
        sigmas = [0.0, *step.sigmas] if first else list(step.sigmas)
        sigma = torch.tensor(sigmas, device=noise.device).expand(frames.shape[0], -1)
        told_now = told[:, 0 if first else 1 : count + 1]
        condition = generator.condition(sigma, told_now, prompt.unsqueeze(1).expand(-1, frames.shape[1], -1, -1))
        shared = generator.shared_modulation(condition)
        x = generator.tokens(frames, recent)
        for block, remembered in zip(generator.layers, memory, strict=True):
            x = remembered.layer(block, x, shared, generator.space_cos, generator.space_sin, commit=first)
        clean = generator.latent(x[:, -count:], condition[:, -count:], recent[:, -count:]).float()
        flight = torch.stack(
            [_renoise(clean[:, f], level, noises) if level else clean[:, f] for f, level in enumerate(step.after)], 1
        )

    assert flight is not None, "a tick has at least one pass"
    latent = flight[:, 0]
    window = torch.cat([state["latents"][:, 2:], flight[:, :1]], 1)
    after: State = {
        "frame": state["frame"] + 1,
        "position": torch.cat([state["position"][:, :1], state["position"][:, 2:], state["frame"].unsqueeze(1)], 1),
        "latents": torch.cat([state["latents"][:, :1], window], 1),
        "sink_actions": state["sink_actions"],
        "actions": torch.cat([state["actions"][:, 1:], action.unsqueeze(1)], 1),
    }
    if flying > 1:
        after["flight"] = flight[:, 1:]
    for layer, remembered in enumerate(memory):
        after[f"kv.{layer}"] = remembered.committed
    return latent, after


def _renoise(clean: Tensor, level: float, noises: Iterator[Tensor]) -> Tensor:
    return (1 - level) * clean + level * next(noises)


@dataclass
class _Remembered:
    """One block's cache during a tick. Cached keys are turned once, relative to the pending frame, for all passes."""

    kv: Tensor  # [batch, 2, slots, tokens, heads, head_dim]
    position: Tensor  # [batch, slots]
    frame: Tensor  # [batch], the pending frame

    def __post_init__(self) -> None:
        self.committed = self.kv
        self.keys = turn_time(self.kv[:, 0, 1:], self.frame.unsqueeze(1) - self.position[:, 1:])
        self.values = self.kv[:, 1, 1:]

    def layer(self, block: Block, x: Tensor, shared: Tensor, cos: Tensor, sin: Tensor, commit: bool) -> Tensor:
        """One block over the fresh frames x: [batch, (pending if commit) + flying, tokens, dim]."""
        q, k, v = block.project(x, shared, cos, sin)
        if commit:
            self.committed = torch.stack(
                [
                    torch.cat([kept[:, :1], kept[:, 2:], new[:, :1].to(kept.dtype)], 1)
                    for kept, new in ((self.kv[:, 0], k), (self.kv[:, 1], v))
                ],
                1,
            )
        begin = 0 if commit else 1
        ahead = torch.arange(begin, begin + x.shape[1], device=x.device)  # frames after the pending one
        keys = torch.cat([self.keys, turn_time(k, -ahead).to(self.keys.dtype)], 1)
        values = torch.cat([self.values, v.to(self.values.dtype)], 1)
        queries = turn_time(q, -ahead)
        window = self.kv.shape[2] - 1
        attended = []
        for f in range(x.shape[1]):
            offset = f if commit else f + 1
            sink = turn_time(self.kv[:, 0, :1], ahead.new_full((1,), window + 1) - offset)
            near = slice(f, f + window + 1)
            mine_k = torch.cat([sink, keys[:, near]], 1).flatten(1, 2)
            mine_v = torch.cat([self.kv[:, 1, :1], values[:, near]], 1).flatten(1, 2)
            attended.append(attend(queries[:, f], mine_k, mine_v))
        if commit:
            self.keys, self.values = keys[:, 1 : window + 1], values[:, 1 : window + 1]
        return block.finish(x, torch.stack(attended, 1), shared)

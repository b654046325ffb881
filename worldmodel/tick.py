"""The tick of a native world: generator + cache + schedule + codec as one pure function of arrays.

    frame, state' = tick(state, action, prompt, noise)

The pass that commits the last clean frame to the cache rides in the first denoising pass of the next tick (exact,
because the clean frame does not see the noisy ones; algorithms.md A.5). Keys are cached without their turn in time;
where they stand is data (`position`), and the sink always stands right before the window (re-anchored, as in
Rolling Forcing).

A prompt is news for FRESH ticks after a switch; then the picture has taken it up, and the newest frame becomes the
sink, so that what is kept for ever shows the colours of now.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from worldmodel.codec.small import Codec
from worldmodel.condition import drag
from worldmodel.condition.native import controls, presses_of
from worldmodel.heads import Heads, begun
from worldmodel.schedule.plan import Plan
from worldmodel.schedule.table import ScheduleTable
from worldmodel.spec import WorldSpec
from worldmodel.transformer.clip import clean_layer, recent_frames
from worldmodel.transformer.generator import FRESH, RECENT, Generator, drifted, first_noise, patchify, unpatchify
from worldmodel.transformer.play import (
    Conditions,
    Embedding,
    Layer,
    Turns,
    attend,
    by_frame,
    each,
    later_frames,
    side_by_side,
)

State = dict[str, Tensor]


class World(nn.Module):
    """All weights of a native world."""

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        self.spec = spec
        self.codec = Codec(spec.codec, spec.height, spec.width, spec.codec.down * spec.generator.patch)
        self.generator = Generator(spec)
        history, actions = spec.generator.action_history, len(spec.actions)
        self.heads = Heads(spec.heads, spec.latent_shape, history, actions) if spec.heads else None


def state_shapes(
    spec: WorldSpec, schedule: ScheduleTable | None = None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name to shape (one player) and dtype of everything that a world remembers.

    frame: number of the newest shown frame, which is not in the cache yet ("pending")
    position: frame in each slot of the cache; slot 0 is the sink
    latents: clean latents of the sink, of the window, and of the pending frame
    told: the prompt of the last recache, zero before the first; fresh: ticks for which it is still news
    sink_actions, actions: what led to them, with history; the last entry led to the pending frame
    slow: those of the numbers that a frame begins from that change slowly (worlds with such only)
    flight: frames still being denoised, the oldest first, each at its own noise level (rolling schedules only)
    tracks.…: the points that are led, see condition/drag.py (worlds with tracks only)
    reward, terminated: of the newest tick, see heads.py (worlds with heads only)
    kv.N: keys and values of block N, not turned in time; heads before slots, so that a head's keys lie together
    """
    schedule = schedule or spec.schedule
    sizes, latent = spec.generator, spec.latent_shape
    slots = spec.sink + spec.window
    history, actions = sizes.action_history, spec.controls
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "frame": ((1,), torch.int64),
        "position": ((1, slots), torch.int64),
        "latents": ((1, slots + 1, *latent), torch.float32),
        "told": ((1, spec.prompt_tokens, spec.prompt_dim), torch.float32),
        "fresh": ((1,), torch.int64),
        "sink_actions": ((1, history, actions), torch.float32),
        "actions": ((1, spec.window + history, actions), torch.float32),
    }
    if sizes.slow:
        shapes["slow"] = ((1, sizes.slow), torch.float32)
    if schedule.frames > 1:
        shapes["flight"] = ((1, schedule.frames - 1, *latent), torch.float32)
    if spec.heads:
        shapes |= {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in begun(1).items()}
    if spec.tracks:
        shapes |= drag.state_shapes()
    for layer in range(sizes.depth):
        shapes[f"kv.{layer}"] = ((1, 2, sizes.heads, slots, spec.tokens, sizes.head_dim), torch.float32)
    return shapes


def carried(spec: WorldSpec) -> list[str]:
    """Which parts of the state are cached keys and values that stay what they are while they are kept: all of them,
    but where the sink takes up a little of every frame (EMA sink).
    """
    return [f"kv.{layer}" for layer in range(spec.generator.depth)] if spec.sink_keep in (0, 1) else []


def start(world: World, latents: Tensor, actions: Tensor, schedule: ScheduleTable | None = None) -> State:
    """The state of a world that has just shown the last of `latents`; call `recache` on it before the first tick.

    latents: [batch, 1 + window + 1, channels, rows, columns], the sink and the frames before play.
    actions: [batch, 1 + window + 1, history, spec.controls], what led to each.
    """
    spec, batch = world.spec, latents.shape[0]
    schedule = schedule or spec.schedule
    device = latents.device
    state: State = {
        "frame": torch.full((batch,), spec.window + 1, device=device),
        "position": torch.arange(spec.window + 1, device=device).expand(batch, -1).contiguous(),
        "latents": latents.float(),
        "told": torch.zeros(batch, spec.prompt_tokens, spec.prompt_dim, device=device),
        "fresh": torch.zeros(batch, dtype=torch.int64, device=device),
        "sink_actions": actions[:, 0].float(),
        "actions": torch.cat([actions[:, 1, :-1], actions[:, 1:, -1]], 1).float(),
    }
    if spec.generator.slow:
        state["slow"] = torch.zeros(batch, spec.generator.slow, device=device)
    if schedule.frames > 1:
        state["flight"] = latents[:, -1:].float().expand(-1, schedule.frames - 1, -1, -1, -1).contiguous()
    if spec.heads:
        state |= begun(batch, device)
    for name, (shape, dtype) in state_shapes(spec, schedule).items():
        if name.startswith(("kv.", "tracks.")):
            state[name] = torch.zeros(batch, *shape[1:], dtype=dtype, device=device)
    return state


def recache(world: World, state: State, prompt: Tensor) -> State:
    """Renew the keys and values of all cached frames under a prompt (LongLive's KV-recache, arXiv:2509.22622).

    The first prompt of a world says what its frames show already; any other one is news.

    prompt: [batch, prompt_tokens, prompt_dim].
    """
    generator, window = world.generator, world.spec.window
    latents = state["latents"][:, :-1]
    batch, frames = latents.shape[:2]
    history = world.spec.generator.action_history
    past = [state["actions"][:, i : i + history] for i in range(window)]
    actions = torch.stack([state["sink_actions"], *past], 1)
    other, first = (state["told"] != prompt).flatten(1).any(1), (state["told"] == 0).flatten(1).all(1)
    fresh = torch.where(other & ~first, FRESH, state["fresh"])
    sigma, news = torch.zeros(batch, frames, device=latents.device), (fresh > 0).float().unsqueeze(1)
    condition = generator.condition(
        sigma, actions, prompt.unsqueeze(1).expand(-1, frames, -1, -1), news.expand(-1, frames)
    )
    shared = generator.shared_modulation(condition)
    x = generator.tokens(latents, recent_frames(latents))
    renewed = state | {"told": prompt.clone(), "fresh": fresh}
    for layer, block in enumerate(generator.layers):
        x, k, v = clean_layer(block, x, shared, window, generator.space_cos, generator.space_sin)
        renewed[f"kv.{layer}"] = torch.stack([k, v], 1).permute(0, 1, 4, 2, 3, 5).to(state[f"kv.{layer}"].dtype)
    return renewed


def tick(
    world: World, state: State, action: Tensor, prompt: Tensor, noise: Tensor, schedule: ScheduleTable | None = None
) -> tuple[Tensor, State]:
    """Make the next frame and the state after it. Equal arguments give equal results.

    action: [batch, buttons], see `controls`. prompt: [batch, prompt_tokens, prompt_dim].
    noise: [batch, schedule.noises, channels, rows, columns], standard normal.
    Returns uint8 [batch, height, width, 3] and the state for the next call.
    """
    told, led, state = _told(world.spec, state, action)
    latent, state = next_latent(world, state, told, prompt, noise, schedule, led)
    return world.codec.picture(latent), state


def reprime(
    world: World, state: State, action: Tensor, prompt: Tensor, noise: Tensor, schedule: ScheduleTable | None = None
) -> tuple[Tensor, State]:
    """`tick` for a changed action in a world with frames in flight: they are dropped and made anew (rollback).

    The frame and the state after it do not depend on what was in flight, so they are those of a game in which the
    action was known all along. noise: [batch, count_noises(schedule.reprime), channels, rows, columns].
    """
    schedule = schedule or world.spec.schedule
    told, led, state = _told(world.spec, state, action)
    latent, state = walk(world, state, told, prompt, noise, schedule.reprime, led=led)
    return world.codec.picture(latent), state


def _told(spec: WorldSpec, state: State, action: Tensor) -> tuple[Tensor, Tensor | None, State]:
    """What buttons tell the next frame: its condition vector, and the map of points that are led; and the state in
    which these are where they go.
    """
    told = controls(spec, action)
    if spec.tracks is None:
        return told, None, state
    led, points = drag.dragged(spec, state, presses_of("tracks", spec, action))
    return told, led, state | points


def count_noises(plan: Plan) -> int:
    """Noise tensors that a tick of this plan uses."""
    return len(plan.draws(renoise=True))


def next_latent(
    world: World,
    state: State,
    action: Tensor,
    prompt: Tensor,
    noise: Tensor,
    schedule: ScheduleTable | None = None,
    led: Tensor | None = None,
) -> tuple[Tensor, State]:
    """`tick` without the decoder: the next clean latent [batch, channels, rows, columns] and the state after it.

    action: [batch, spec.controls]. led: [batch, DragSpec.NUMBERS, rows, columns], in worlds with tracks; None: nothing
    is.
    """
    schedule = schedule or world.spec.schedule
    return walk(world, state, action, prompt, noise, schedule.steady, state.get("flight"), led)


def walk(
    world: World,
    state: State,
    action: Tensor,
    prompt: Tensor,
    noise: Tensor,
    plan: Plan,
    flight: Tensor | None = None,
    led: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The passes of one tick, on frames as tokens: they are the plan's lanes.

    flight: the first `plan.flying` of them, [batch, flying, channels, rows, columns].
    """
    generator, sizes = world.generator, world.spec.generator
    shown = each(patchify(state["latents"][:, -1 - RECENT :], sizes.patch))  # the last one is pending
    flown = [] if flight is None else each(patchify(flight, sizes.patch))
    begun, flying = first_noise(noise), plan.lanes
    noises = iter(zip(each(patchify(begun, sizes.patch)), each(patchify(noise, sizes.patch)), strict=True))
    # Frames in flight carry the newest action and map: the oldest leaves with them, for the others they are guesses.
    past = torch.cat([state["actions"], action.unsqueeze(1).expand(-1, flying, -1)], 1)
    ends = range(past.shape[1] - flying, past.shape[1] + 1)
    told = torch.stack([past[:, end - sizes.action_history : end] for end in ends], 1)
    fresh = state["fresh"]
    sigmas = [[level.sigma for level in row] for row in plan.rows]
    conditions = Conditions(generator, sigmas, told, prompt, (fresh > 0).float())
    embedding, turns = Embedding(generator, led), Turns(generator, sizes.head_dim)
    layers = [Layer(block, turns) for block in generator.layers]
    settled = _Settled(fresh == 1)
    clock = _Clock(state["position"], state["frame"], turns, settled)
    keep = world.spec.sink_keep
    beginning = _Beginning(state.get("slow"), sizes.patch)
    memory = [_Remembered(state[f"kv.{number}"], clock, settled, keep) for number in range(sizes.depth)]

    for number, row in enumerate(plan.rows):
        flown += [beginning(next(noises)[0]) for _ in row[len(flown) :]]
        line = [*shown, *flown]
        times = range(0 if number == 0 else 1, len(flown) + 1)  # the pending frame rides in the first pass
        x = side_by_side([embedding(line[: len(shown) + time], time) for time in times])
        for layer, remembered, (shift, scale, *rest) in zip(layers, memory, conditions.blocks(number), strict=True):
            q, k, v = (by_frame(part, len(times)) for part in layer.project(x, shift, scale))
            seen = []
            if number == 0:
                if layer is layers[-1]:  # of the pending frame, nothing but its keys and values is wanted
                    x, *rest = (later_frames(part, len(times)) for part in (x, *rest))
                else:
                    seen.append(remembered.attend(q[0], k[:1], v[:1], 0))
                remembered.commit(k.pop(0), v.pop(0))
                q = q[1:]
            seen += [remembered.attend(q[f], k[: f + 1], v[: f + 1], f + 1) for f in range(len(flown))]
            x = layer.finish(x, side_by_side(seen), rest)
        recent = [side_by_side(line[len(shown) - back : -back]) for back in range(1, RECENT + 1)]
        noisy = side_by_side([(1 - level.sigma) * frame for level, frame in zip(row, flown, strict=True)])
        clean = by_frame(conditions.head(number, x, recent, noisy).float(), len(flown))
        following = [plan.following(number, lane) for lane in range(len(row))]
        left = zip(clean, following, strict=True)
        flown = [_renoise(frame, level.sigma, noises) if level else frame for frame, level in left]

    latents = unpatchify(torch.stack(flown, 1), sizes.patch, generator.grid)
    after: State = {
        "frame": state["frame"] + 1,
        "position": clock.committed,
        "latents": torch.cat(
            [
                settled.sink(state["latents"][:, :1], state["latents"][:, -1:]),
                state["latents"][:, 2:],
                latents[:, :1],
            ],
            1,
        ),
        "told": state["told"],
        "fresh": (fresh - 1).clamp(min=0),
        "sink_actions": settled.sink(state["sink_actions"], state["actions"][:, -sizes.action_history :]),
        "actions": torch.cat([state["actions"][:, 1:], action.unsqueeze(1)], 1),
    }
    if beginning.slow is not None:
        after["slow"] = beginning.slow
    if flying > 1:
        after["flight"] = latents[:, 1:]
    after |= {name: state[name] for name in state if name.startswith("tracks.")}
    if world.heads is not None:
        after |= world.heads.outcome(after)
    after |= {f"kv.{number}": remembered.kv for number, remembered in enumerate(memory)}
    return latents[:, 0], after


def _renoise(clean: Tensor, level: float, noises: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    return (1 - level) * clean + level * next(noises)[1]


class _Beginning:
    """What frames begin from, one after the other, as tokens. slow: [batch, numbers] or None."""

    def __init__(self, slow: Tensor | None, patch: int) -> None:
        self.slow, self._cells = slow, patch**2

    def __call__(self, noise: Tensor) -> Tensor:
        """noise: [batch, tokens, width], of `first_noise`; a channel's cells lie together."""
        if self.slow is None:
            return noise
        width = self.slow.shape[1] * self._cells
        self.slow = drifted(self.slow, noise[:, 0, : width : self._cells])
        kept = self.slow.repeat_interleave(self._cells, 1).unsqueeze(1).expand(-1, noise.shape[1], -1)
        return torch.cat([kept, noise[..., width:]], -1)


class _Settled:
    """Which players' pictures have just taken up a prompt: their pending frame becomes the sink. now: bool [batch]."""

    def __init__(self, now: Tensor) -> None:
        self._now = now

    def sink(self, kept: Tensor, pending: Tensor) -> Tensor:
        """kept, pending: [batch, …]."""
        return torch.where(self._now.view(-1, *[1] * (kept.dim() - 1)), pending, kept)


class _Clock:
    """How far the remembered frames lie before a frame at `time`: 0 is the pending one, 1 the one to be made."""

    def __init__(self, position: Tensor, frame: Tensor, turns: Turns, settled: _Settled) -> None:
        self.turns, self._position, self._frame = turns, position, frame
        self.window = position.shape[1] - 1
        newest = frame.unsqueeze(1)
        self.committed = torch.cat([settled.sink(position[:, :1], newest), position[:, 2:], newest], 1)
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def slots(self, time: int) -> list[slice]:
        """Of the cache, committed from time 1 on: the sink, and as many frames as the window leaves room for."""
        return [slice(0, 1), slice(min(time, self.window + 1), None)] if time > 1 else [slice(None)]

    def tables(self, time: int) -> tuple[Tensor, Tensor]:
        """Of `Turns`, for keys in these slots: [batch, 1, slots, 1, head_dim]. The sink stands before the window."""
        if time not in self._tables:
            position = self.committed if time else self._position
            near = (self._frame + time).unsqueeze(1) - position[:, max(time, 1) :]
            distance = torch.cat([torch.full_like(position[:, :1], self.window + 1), near], 1)
            cos, sin = self.turns.in_time(distance)
            self._tables[time] = cos[:, None, :, None], sin[:, None, :, None]
        return self._tables[time]


class _Remembered:
    """One block's cache during a tick. Cached keys are turned once for each time, for all passes."""

    def __init__(self, kv: Tensor, clock: _Clock, settled: _Settled, keep: float) -> None:
        self.kv, self._clock, self._settled = kv, clock, settled  # kv: [batch, 2, heads, slots, tokens, head_dim]
        self._keep = keep
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}

    def commit(self, k: Tensor, v: Tensor) -> None:
        """The pending frame takes the place of the oldest but the sink, which that one may be fused into.

        k, v: [batch, heads, tokens, head_dim].
        """
        new = torch.cat([k, v], 1).unflatten(1, (2, -1)).unsqueeze(3).to(self.kv.dtype)
        sink = self.kv[:, :, :, :1]
        if self._keep < 1:  # not a product by 1 in the graphs of worlds whose sink stays
            sink = self._keep * sink + (1 - self._keep) * self.kv[:, :, :, 1:2]
        self.kv = torch.cat([self._settled.sink(sink, new), self.kv[:, :, :, 2:], new], 3)

    def attend(self, q: Tensor, k: list[Tensor], v: list[Tensor], time: int) -> Tensor:
        """What the frame at `time` finds in the cache and in the frames of its pass up to itself, which is the last."""
        keys, values = self._cached(time)
        turns, window = self._clock.turns, self._clock.window
        near = range(max(0, len(k) - 1 - window), len(k) - 1)
        turned = [turns(k[f], *turns.in_time(torch.tensor(len(k) - 1 - f, device=q.device))) for f in near]
        return attend(q, torch.cat([keys, *turned, k[-1]], 2), torch.cat([values, *(v[f] for f in near), v[-1]], 2))

    def _cached(self, time: int) -> tuple[Tensor, Tensor]:
        """Keys turned for the frame at `time`, and values: [batch, heads, slots · tokens, head_dim]."""
        if time not in self._seen:
            kept = [self.kv[:, :, :, part] for part in self._clock.slots(time)]
            keys, values = each(kept[0] if len(kept) == 1 else torch.cat(kept, 3))
            keys = self._clock.turns(keys, *self._clock.tables(time))
            self._seen[time] = keys.flatten(2, 3), values.flatten(2, 3)
        return self._seen[time]

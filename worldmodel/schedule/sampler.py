"""The one sampler: walks any schedule's table with a transformer and a cache, as a pure function over a flat state.

    latents, state' = stream.tick(state, noise, steer)

A stream remembers nothing itself. Its state, a flat dict of arrays whose first axis is the players':

    cache.*, kv.*          what the cache technique keeps (cache/base.py)
    cross.*                keys and values of the prompt, made when it was given
    recent                 [batch, window, channels, rows, columns], the last clean latents, which a prompt switch needs
    recent.NAME            what steered them
    flight                 [batch, frames in flight between ticks, channels, rows, columns]
    phase, reprimed        [batch] int64, ticks since the start or the last re-prime, and which of the two it was
    pending, pending.full  the finished block whose commit rides in the next pass, and whether there is one (fused
    commit)
    pending.NAME           what steered that block
    uncond.*               the same caches without the prompt (guidance only)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from worldmodel.cache.attention import NONE, Group, Seen, select
from worldmodel.cache.base import Cache, Reading, State, empty_slots, write
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.first_pass_sink import FirstPassSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.errors import SpecError
from worldmodel.families.wan_transformer import Conditions, Levels, WanTransformer
from worldmodel.schedule.plan import FlowTable, Level, Plan, Schedule

Steer = Mapping[str, Tensor]  # per-frame conditions of the lanes: channels, camera, mouse, keyboard


@dataclass
class Stream:
    """A transformer, a cache and a schedule, put together."""

    model: WanTransformer
    cache: Cache
    schedule: Schedule
    size: tuple[int, int]  # latent rows and columns
    fused: bool = False  # the commit of a block rides in the first pass of the next
    commit_level: Level = field(default_factory=lambda: FlowTable().at(0))
    guidance: float | None = None  # classifier-free: v = v_u + guidance · (v_c − v_u)
    in_place: bool = False  # the state handed to `tick` is used up: its arrays become the next state's
    _levels: dict[tuple[Level, ...], Levels] = field(default_factory=dict, repr=False)
    _columns: dict[tuple[tuple[float, ...], torch.dtype], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        rows, columns = self.size
        if rows % self.model.spec.patch[0] or columns % self.model.spec.patch[1]:
            raise SpecError(f"latent size {self.size} must divide by the patch {self.model.spec.patch}")
        check_combination(self.cache, self.schedule, self.fused)

    # -- states --------------------------------------------------------------------------------------------------------

    @property
    def branches(self) -> tuple[str, ...]:
        return ("",) if self.guidance is None else ("", "uncond.")

    def empty(self, batch: int = 1) -> State:
        """A stream before its first frame; give it a prompt before the first tick."""
        like = self.model.head.modulation
        tokens = self.size[0] * self.size[1] // (self.model.spec.patch[0] * self.model.spec.patch[1])
        flags = {name: torch.zeros(batch, dtype=torch.int64, device=like.device) for name in ("phase", "reprimed")}
        state = {
            **flags,
            **empty_slots(self.cache, batch, like.device),
            "recent": self._latents(batch, self.cache.slots),
        }
        for branch in self.branches:
            stores = self.model.empty_stores(batch, self.cache.slots, tokens)
            state.update({branch + name: store for name, store in stores.items()})
        if self.lanes > 1:
            state["flight"] = self._latents(batch, (self.lanes - 1) * self.cache.chunk)
        if self.fused:
            state["pending"] = self._latents(batch, self.cache.chunk)
            state["pending.full"] = torch.zeros(batch, dtype=torch.int64, device=like.device)
        for name, shape in self.model.spec.steers(self.size).items():
            state[f"recent.{name}"] = like.new_zeros(batch, self.cache.slots, *shape)
            if self.fused:
                state[f"pending.{name}"] = like.new_zeros(batch, self.cache.chunk, *shape)
        return state

    @property
    def lanes(self) -> int:
        """Blocks in flight in the steady state."""
        return self.schedule.plan(self.schedule.steady_from).lanes

    def _latents(self, batch: int, frames: int) -> Tensor:
        like = self.model.head.modulation
        return like.new_zeros(batch, frames, self.model.spec.out_channels, *self.size)

    def prompted(
        self, state: State, prompt: Tensor | None = None, image: Tensor | None = None, branch: str = ""
    ) -> State:
        """The state with the keys and values of another prompt [batch, rows, dim]; what is cached of frames stays."""
        return {**state, **{branch + name: kv for name, kv in self.model.cross(prompt, image).items()}}

    def plan(self, state: State) -> Plan:
        """The plan of the next tick. Players of one batch must be at the same point of the schedule."""
        steady = self.schedule.steady_from
        phases = [min(phase, steady) for phase in state["phase"].tolist()]
        marks = set(zip(phases, state["reprimed"].tolist(), strict=True))
        if len(marks) != 1:
            raise SpecError(
                "players of one batch must be in the same phase of the schedule: warm up or re-prime them together"
            )
        phase, reprimed = marks.pop()
        return self.schedule.plan(phase, bool(reprimed))

    def noises(self, plan: Plan) -> int:
        """Noise tensors, each of one block, that a tick consumes."""
        return len(plan.draws(self.schedule.renoise))

    # -- the tick ------------------------------------------------------------------------------------------------------

    def tick(
        self, state: State, noise: Tensor, steer: Steer | None = None, plan: Plan | None = None
    ) -> tuple[Tensor, State]:
        """Make the next block: clean latents [batch, chunk, channels, rows, columns], and the state after it.

        noise: [batch, noises · chunk, channels, rows, columns], in the order of `Plan.draws`.
        steer: per-frame conditions [batch, lanes · chunk, …] of the blocks in flight, oldest first.
        """
        plan, steer, chunk = plan or self.plan(state), steer or {}, self.cache.chunk
        if noise.shape[1] != self.noises(plan) * chunk:
            raise SpecError(
                f"this tick takes {self.noises(plan)} noise blocks of {chunk} frames: got {noise.shape[1]} frames"
            )
        draws = iter(noise.split(chunk, 1))
        lanes = list(state["flight"].split(chunk, 1))[: plan.flying] if plan.flying else []
        walk = _Walk(self, state)
        for number, row in enumerate(plan.rows):
            lanes += [next(draws) for _ in range(len(lanes), len(row))]
            seen = torch.cat(lanes[: len(row)], 1)
            told = {name: part[:, : len(row) * chunk] for name, part in steer.items()}
            flow = walk.look(seen, row, told, last=number + 1 == plan.passes)
            lanes[: len(row)] = self.advance(plan, number, seen, flow, draws)
        latents = lanes[0]
        walk.finish(latents, {name: part[:, :chunk] for name, part in steer.items()})
        state = walk.state
        if self.lanes > 1:
            waiting = lanes[1:] + [torch.zeros_like(latents)] * (self.lanes - len(lanes))
            state["flight"] = torch.cat(waiting, 1)
        state["phase"] = state["phase"] + 1
        return latents, state

    def velocity(self, state: State, seen: Tensor, row: tuple[Level, ...], steer: Steer | None = None) -> Tensor:
        """What one pass says of the blocks in flight [batch, lanes · chunk, …]; nothing is kept of it.

        With gradient, where that is on and the weights want it; none comes from the cache, which knows numbers alone.
        """
        return _Walk(self, state).look(seen, row, steer or {}, last=False)

    def advance(self, plan: Plan, number: int, seen: Tensor, flow: Tensor, draws: Iterator[Tensor]) -> list[Tensor]:
        """Every lane after a pass: at its next level, or clean."""
        chunk = self.cache.chunk
        follows = [plan.following(number, lane) for lane in range(len(plan.rows[number]))]
        now = self._column([level.sigma for level in plan.rows[number]], torch.float64)
        if not self.schedule.renoise:
            later = self._column([0.0 if level is None else level.sigma for level in follows], torch.float64)
            return list((seen + (later - now) * flow).to(seen.dtype).split(chunk, 1))
        clean = torch.addcmul(seen.double(), now, flow.double(), value=-1).to(seen.dtype)
        levels = [level for level in follows if level]
        if not levels:
            return list(clean.split(chunk, 1))
        finished = chunk * (len(follows) - len(levels))  # only lane 0 can be
        share = self._column([level.sigma for level in levels], seen.dtype)
        mixed = torch.lerp(clean[:, finished:], torch.cat([next(draws) for _ in levels], 1), share)
        return [*([clean[:, :finished]] if finished else []), *mixed.split(chunk, 1)]

    def _column(self, sigmas: list[float], dtype: torch.dtype) -> Tensor:
        """Sigmas of lanes as a column over their frames, [1, frames, 1, 1, 1]; made once."""
        key = (tuple(sigmas), dtype)
        if key not in self._columns:
            column = torch.tensor(sigmas, dtype=dtype, device=self.model.head.modulation.device)
            self._columns[key] = column.repeat_interleave(self.cache.chunk)[None, :, None, None, None]
        return self._columns[key]

    def append(self, state: State, latents: Tensor, steer: Steer | None = None, level: Level | None = None) -> State:
        """Commit given clean latents [batch, chunk, …] as the next block, such as a start picture.

        A pass of its own. level: what the network is told of them, where that is not the commit level.
        """
        walk = _Walk(self, state)
        walk.flush()
        walk.commit(latents, steer or {}, level)
        return walk.state

    def reprime(self, state: State) -> State:
        """Drop what is in flight: the action it was made for has changed."""
        return {**state, "phase": torch.zeros_like(state["phase"]), "reprimed": torch.ones_like(state["reprimed"])}

    def recache(
        self,
        state: State,
        prompt: Tensor | None = None,
        image: Tensor | None = None,
        keep_sink: bool = True,
        causal: bool = False,
    ) -> State:
        """Switch the prompt: the cached frames are computed again under it (LongLive's KV-recache, arXiv:2509.22622).

        keep_sink: the sink keeps what the first prompt made of it, once frames have left the cache.
        causal: every block sees itself and what is before it, as when it was made; otherwise all see all.
        """
        walk = _Walk(self, state)
        walk.flush()
        walk = _Walk(self, self.prompted(walk.state, prompt, image))
        walk.renew(keep_sink, causal)
        return walk.state

    # -- what does not change ------------------------------------------------------------------------------------------

    def levels(self, frames: tuple[Level, ...]) -> Levels:
        """Modulation of a pass's frames; made once for every pattern of levels."""
        if frames not in self._levels:
            timesteps = torch.tensor([level.timestep for level in frames], device=self.model.head.modulation.device)
            self._levels[frames] = self.model.levels(timesteps[None])
        return self._levels[frames]


def check_combination(cache: Cache, schedule: Schedule, fused: bool) -> None:
    """Refuse a cache and a schedule that cannot work together, and say why."""
    if fused and schedule.commit == "last":
        raise SpecError("this schedule has no commit pass to fuse: its cache keeps the last noisy pass")
    if fused and isinstance(cache, EmaSink) and cache.ring < 2 * cache.chunk:
        raise SpecError(
            "the commit cannot be fused: the block being committed would leave this EMA sink's window in the same "
            f"pass; cache.window must be at least sink + 2 chunks = {cache.sink + 2 * cache.chunk}"
        )
    if isinstance(cache, FirstPassSink) and cache.sink > cache.chunk:
        steady = schedule.plan(schedule.steady_from)
        if fused or schedule.commit == "last" or steady.lanes > 1:
            raise SpecError(
                f"a sink of {cache.sink} frames that keeps a block's first pass takes one block of {cache.chunk} at a "
                "time and a clean pass of its own: no blocks in flight, no fused commit, no schedule without a commit"
            )
    if isinstance(cache, RollingSink) and schedule.joint:
        window = schedule.plan(schedule.steady_from).lanes * cache.chunk
        if window > cache.attention:
            raise SpecError(
                f"{window} frames in flight do not fit into the {cache.attention} frames that one query may see: "
                f"cache.attention must be at least {window}"
            )


class _Walk:
    """One tick under way: the state so far, and what has been read of it."""

    def __init__(self, stream: Stream, state: State) -> None:
        self.stream, self.state = stream, dict(state)
        self.owned = stream.in_place  # whether the caches' arrays may be written
        self.read: dict[tuple[str, int, int, bool], Group] = {}
        self.readings: dict[tuple[int, int, int, bool], Reading] = {}
        self.books: list[Tensor] = []
        self.crosses: dict[str, State] = {}
        self.fresh: dict[str, State] = {}
        self.early = 0  # leading frames of the block that are in the cache already

    def look(self, seen: Tensor, row: tuple[Level, ...], steer: Steer, last: bool) -> Tensor:
        """Velocities of the blocks in flight. A block waiting for its commit rides along."""
        if self._pending():
            riding = self._ride(seen, row, steer)
            if riding is not None:
                return riding
            self.flush()
        keep = self.first if last and self.stream.schedule.commit == "last" else NONE
        early = 0 if self.early else self.stream.cache.early(self.state)
        if early:
            keep = slice(0, early)
        frames = len(row) * self.stream.cache.chunk
        flow = self._pass(seen, row, steer, lambda branch: self._noisy(branch, frames), keep)
        if early:
            self._own()
            self._store(self.fresh)
            self.early = early
        return flow

    def finish(self, latents: Tensor, steer: Steer) -> None:
        """Hand the finished block to the cache, now or with the next pass."""
        if self.stream.schedule.commit == "last":
            self._make_room()
            self._fill(self.fresh, latents, steer)
        elif self.stream.fused:
            self.state.update({f"pending.{name}": part for name, part in steer.items()})
            self.state["pending"], self.state["pending.full"] = latents, torch.ones_like(self.state["phase"])
        else:
            self.commit(latents, steer)

    def commit(self, latents: Tensor, steer: Steer, level: Level | None = None) -> None:
        """The cache pass: run the clean block once more and keep its keys and values."""
        row = (level or self.stream.commit_level,)
        rest = slice(self.early, None)
        self._pass(latents, row, steer, lambda branch: (self._clean(branch),), rest, silent=latents.shape[1])
        self._make_room()
        self._fill(self.fresh, latents, steer)

    def flush(self) -> None:
        """Commit the waiting block in a pass of its own."""
        if self._pending():
            self.state["pending.full"] = torch.zeros_like(self.state["pending.full"])
            self.commit(self.state["pending"], self._pending_steer())

    def renew(self, keep_sink: bool, causal: bool) -> None:
        """Compute the cached frames again; they see each other and what stays."""
        stream, state = self.stream, self.state
        renewal = stream.cache.renew(state, keep_sink)
        wanted = renewal.live.any(0)
        if not wanted.any():
            return
        self._own()
        state = self.state
        frames, live, slots = (part[:, wanted] for part in (renewal.frames, renewal.live, renewal.slots))
        place = (frames % stream.cache.slots).clamp(min=0)
        latents = _taken(state["recent"], place)
        levels = stream.levels((stream.commit_level,) * latents.shape[1])
        positions = renewal.context.query_positions[:, wanted]
        count = latents.shape[1]
        begins = [i for i in range(1, count) if causal and int(frames[0, i]) % stream.cache.chunk == 0]
        edges = [0, *begins, count]
        steers = stream.model.spec.steers(stream.size)
        conditions = {name: _taken(state[f"recent.{name}"], place) for name in steers}
        for branch in stream.branches:
            context = stream.model.context(self._branch(branch), renewal.context, stream.size)
            groups = []
            for start, end in pairwise(edges):
                own, before = slice(start, end), slice(0, end)
                shown = None if live.all() else live[:, before]
                seen = Seen(before, live=shown)
                groups.append(Group(own, stream.model.turns(positions[:, own], stream.size), (seen,), context))
            told = self._conditions(branch, conditions)
            _, fresh = stream.model(latents, levels, tuple(groups), told, silent=count)
            for name, value in fresh.items():
                state[branch + name] = write(state[branch + name], slots, value, live, in_place=True)
        held = [
            row.scatter(0, at[on], new[on])
            for row, at, on, new in zip(state["cache.frame"], slots, live, frames, strict=True)
        ]
        state["cache.frame"] = torch.stack(held)
        self.read.clear()

    # -- passes --------------------------------------------------------------------------------------------------------

    def _pass(
        self,
        latents: Tensor,
        row: tuple[Level, ...],
        steer: Steer,
        groups: Callable[[str], tuple[Group, ...]],
        keep: slice,
        silent: int = 0,
    ) -> Tensor:
        """Run the network, with guidance if asked; the wanted keys and values of every branch go to `fresh`."""
        flows, stream = [], self.stream
        levels = stream.levels(tuple(level for level in row for _ in range(stream.cache.chunk)))
        for branch in stream.branches:
            told = self._conditions(branch, steer)
            flow, self.fresh[branch] = stream.model(latents, levels, groups(branch), told, keep, silent)
            flows.append(flow)
        if stream.guidance is None:
            return flows[0]
        return flows[1] + stream.guidance * (flows[0] - flows[1])

    def _ride(self, seen: Tensor, row: tuple[Level, ...], steer: Steer) -> Tensor | None:
        """The first pass with the clean block in front. None where this cannot be exact for all players at once."""
        stream, chunk = self.stream, self.stream.cache.chunk
        before, waiting = self.state["cache.next"], self._pending_steer()
        booked = stream.cache.book(self.state, chunk)
        readings = [(place, self._read(booked, size, ahead)) for place, (ahead, size) in self._spans(len(row) * chunk)]
        riding = [(reading.frames >= before[:, None]) & reading.valid for _, reading in readings]
        if len(before) > 1 and not all((mask == mask[:1]).all() for mask in riding):
            return None
        stands_at = self._read(self.state, chunk, clean=True).query_positions
        clean = {branch: self._clean(branch) for branch in stream.branches}
        self._make_room()  # after the clean block has read what leaves now

        def groups(branch: str) -> tuple[Group, ...]:
            own = self._branch(branch)
            noisy = [
                self._behind(own, slice(place.start + chunk, place.stop + chunk), reading, mask[0], before, stands_at)
                for (place, reading), mask in zip(readings, riding, strict=True)
            ]
            return clean[branch], *noisy

        both = {name: torch.cat([waiting[name], part], 1) for name, part in steer.items()}
        together = torch.cat([self.state["pending"], seen], 1)
        flow = self._pass(together, (stream.commit_level, *row), both, groups, self.first, silent=chunk)
        self.state["pending.full"] = torch.zeros_like(self.state["pending.full"])
        self._fill(self.fresh, self.state["pending"], waiting, booked)
        return flow

    def _behind(
        self, state: State, frames: slice, reading: Reading, riding: Tensor, before: Tensor, stands_at: Tensor
    ) -> Group:
        """Noisy frames that see the clean block ahead of them in the same pass, and the rest of it all in the cache."""
        model, size = self.stream.model, self.stream.size
        turns = model.turns(reading.query_positions, size)
        sees: tuple[Seen, ...] = (Seen(frames),)
        if riding.any():
            first = int((reading.frames[0, riding] - before[0]).min())
            clean = slice(first, first + int(riding.sum()))
            seen_at = reading.positions[:, riding]
            stand = torch.equal(seen_at, stands_at[:, clean])
            sees = (Seen(clean, None if stand else model.turns(seen_at, size)), *sees)
            reading = select(reading, ~riding)
        return Group(frames, turns, sees, model.context(state, reading, size))

    def _noisy(self, branch: str, frames: int) -> tuple[Group, ...]:
        return tuple(self._group(branch, place, ahead, clean=False) for place, (ahead, _) in self._spans(frames))

    def _clean(self, branch: str) -> Group:
        return self._group(branch, self.first, 0, clean=True)

    def _spans(self, frames: int) -> list[tuple[slice, tuple[int, int]]]:
        """Frames that see each other, all of a pass or block by block: where they are, how far ahead, how many."""
        size = frames if self.stream.schedule.joint else self.stream.cache.chunk
        return [(slice(start, start + size), (start, size)) for start in range(0, frames, size)]

    def _group(self, branch: str, place: slice, ahead: int, clean: bool) -> Group:
        """Frames that see each other and the cache. The cache is read once for all passes that see it the same."""
        stream, frames = self.stream, place.stop - place.start
        key = (branch, ahead, frames, clean and stream.cache.clean_apart)
        if key not in self.read:
            reading = self._read(self.state, frames, ahead - self.early, clean)
            turns = stream.model.turns(reading.query_positions, stream.size)
            context = stream.model.context(self._branch(branch), reading, stream.size)
            fresh = slice(place.start + self.early, place.stop)
            self.read[key] = Group(place, turns, (Seen(fresh),), context)
        return self.read[key]

    def _read(self, state: State, frames: int, ahead: int = 0, clean: bool = False) -> Reading:
        """What the cache answers; asked once about every state of its books, which are never written in place."""
        cache = self.stream.cache
        key = (id(state["cache.next"]), frames, ahead, clean and cache.clean_apart)
        if key not in self.readings:
            self.readings[key] = cache.read(state, frames, ahead, clean)
            self.books.append(state["cache.next"])  # keeps its id from being used again
        return self.readings[key]

    def _own(self) -> None:
        """Make the caches' arrays this tick's own, so that they may be written."""
        if not self.owned:
            self.state.update({name: value.clone() for name, value in self.state.items() if _stored(name)})
            self.owned = True

    def _make_room(self) -> None:
        """The oldest frames leave for the block that waits."""
        self._own()
        for branch in self.stream.branches:
            after = self.stream.cache.make_room(self._branch(branch), in_place=True)
            self.state.update({branch + name: value for name, value in after.items() if name.startswith("kv.")})

    def _fill(self, fresh: dict[str, State], latents: Tensor, steer: Steer, booked: State | None = None) -> None:
        """Store keys and values of all branches, and remember the latents and what steered them.

        booked: the cache's books after it, where they are known already.
        """
        cache, state = self.stream.cache, self.state
        following = state["cache.next"][:, None] - self.early
        place = (following + torch.arange(cache.chunk, device=following.device)) % cache.slots
        told = {"recent": latents, **{f"recent.{name}": part for name, part in steer.items()}}
        for name, part in told.items():
            state[name] = write(state[name][:, None], place, part[:, None], in_place=True)[:, 0]
        self._store(fresh, booked)

    def _store(self, fresh: dict[str, State], booked: State | None = None) -> None:
        """Store keys and values of all branches."""
        stored: State = {}
        for branch in self.stream.branches:
            after = self.stream.cache.fill(self._branch(branch), fresh[branch], in_place=True)
            stored.update({branch + name: after[name] for name in fresh[branch]})
        books = {name: part for name, part in (booked or after).items() if name.startswith("cache.")}
        self.state = {**self.state, **stored, **books}
        self.read.clear()

    # -- parts of the state --------------------------------------------------------------------------------------------

    def _branch(self, branch: str) -> State:
        """The state as one branch of guidance sees it."""
        if not branch:
            return self.state
        own = {name.removeprefix(branch): value for name, value in self.state.items() if name.startswith(branch)}
        return {**self.state, **own}

    def _conditions(self, branch: str, steer: Steer) -> Conditions:
        if branch not in self.crosses:
            own = (f"{branch}cross.", f"{branch}image.")
            cross = {name.removeprefix(branch): kv for name, kv in self.state.items() if name.startswith(own)}
            if not cross:
                raise SpecError("the stream has no prompt yet: call prompted() on its state first")
            self.crosses[branch] = cross
        return Conditions(self.crosses[branch], **steer)

    @property
    def first(self) -> slice:
        """The frames of a pass's first block."""
        return slice(0, self.stream.cache.chunk)

    def _pending(self) -> bool:
        return self.stream.fused and bool(self.state["pending.full"].any())

    def _pending_steer(self) -> dict[str, Tensor]:
        prefix = "pending."
        return {name.removeprefix(prefix): value for name, value in self.state.items()
                if name.startswith(prefix) and name != "pending.full"}  # fmt: skip


def _stored(name: str) -> bool:
    """Whether a part of the state is written slot by slot."""
    return name.split(".")[0] == "recent" or name.removeprefix("uncond.").startswith("kv.")


def _taken(ring: Tensor, places: Tensor) -> Tensor:
    """[batch, slots, …] at places [batch, n]."""
    return torch.stack([row[at] for row, at in zip(ring, places, strict=True)])

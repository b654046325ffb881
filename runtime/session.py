"""A session: one world being played. It alone keeps the latest state; everything below it is a pure function.

session = Session(World.open("racer"), seed=7)
frame = session.tick({"gas", "left"})  # uint8 [height, width, 3]
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from runtime import snapshot
from runtime.backends import Backend, load_backend
from runtime.backends.graphs import GraphBackend, aligned_zeros
from runtime.errors import UsageError
from runtime.noise import tick_noise
from runtime.prompt import embed_prompt
from runtime.timeline import REWIND_SECONDS, STATES_AT_LEAST, Moment, Step, Timeline
from runtime.worker import Finished, Worker
from runtime.world import State, World


class Session:
    """One player. Equal seed, start, prompts, actions and graphs give equal frames, byte for byte, on one machine and
    backend.

    tick_number: ticks since the start. prompt: the text that the world follows now. last_action, last_graph: of the
    latest tick. frame: its picture. answered: the newest input that it knew, see `tick`. timeline: the past, if
    `rewind_mb` gives it memory.
    """

    prompt: str
    tick_number: int
    last_action: frozenset[str]
    _state: State
    _embedding: np.ndarray

    def __init__(
        self,
        world: World,
        *,
        backend: str | Backend = "auto",
        seed: int = 0,
        start: str | None = None,
        prompt: str | None = None,
        threads: int | None = None,
        precision: str = "auto",
        rewind_mb: float = 0,
    ) -> None:
        self.world = world
        self.backend = (
            load_backend(world, backend, threads=threads, precision=precision) if isinstance(backend, str) else backend
        )
        self.seed, self.start = seed, start
        self.timeline = _timeline(world, rewind_mb) if rewind_mb else None
        self._worker: Worker | None = None
        self.frame: np.ndarray | None = None
        self._older: State = {}  # the state before this one
        self._spare: State = {}  # arrays that the next tick may fill
        self._held: set[int] = set()  # of this state's arrays, those that must never be filled again
        self._undo: Moment | None = None  # before the latest tick
        self._away: tuple[Moment, list[Step]] | None = None  # how to make the state of a tick that was sought
        self.restart(prompt=prompt)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs that a tick can be made with, see runtime/governor.py; `tick` is the first."""
        return graphs_of(self.backend)

    @property
    def in_flight(self) -> int:
        """Frames that are being made while an earlier one is shown; 0 in worlds that make one at a time."""
        flight = self.world.manifest.state.get("flight")
        return 0 if flight is None else flight.shape[1]

    def restart(self, *, seed: int | None = None, start: str | None = None, prompt: str | None = None) -> None:
        """Begin again at tick 0, with the seed and start of this session and the start's prompt, if none is given."""
        seed = self.seed if seed is None else seed
        if not 0 <= seed < 1 << 63:
            raise UsageError(f"the seed must be from 0 to 2^63 - 1, got {seed}")
        start = self.start if start is None else start
        manifest = self.world.manifest
        chosen = manifest.start(start)
        text = prompt or (chosen.prompt if chosen else manifest.default_prompt)
        embedding = embed_prompt(self.backend, text)
        state = {name: aligned_zeros(spec.shape, spec.dtype) for name, spec in manifest.state.items()}
        for name, tensor in self.world.start_state(start).items():
            state[name][...] = tensor
        if self._worker is not None:
            self._worker.reset()
        if chosen and text != chosen.prompt:  # another text than the one that says what the start shows is news
            state = self.backend.recache(state, self.backend.embed(chosen.prompt))
        self._begin(Moment(seed, 0, start, text, embedding, self.backend.recache(state, embedding), frozenset()))

    def tick(self, actions: Collection[str] = (), *, graph: str | None = None, answers: int = 0) -> np.ndarray:
        """The next frame, uint8 [height, width, 3], a new array. actions: names of what is pressed, any order.

        graph: one of `graphs`; by default a changed action makes frames in flight anew, if the world has such. answers:
        the id of the newest input that `actions` come from (`Reading.newest`); `answered` names it until the next tick.
        """
        pressed = frozenset(actions)
        graph = self._answer(pressed) if graph is None else graph
        if graph not in self.graphs:
            raise UsageError(f"world {self.world.manifest.name!r} has no graph {graph!r}: {', '.join(self.graphs)}")
        self._arrive()
        before = self._moment()
        keep = self.timeline is not None and self.timeline.wants_keyframe(self.prompt)
        self.frame = frame = self._advance(pressed, graph)
        self.answered, self._undo = answers, before
        if self.timeline is not None:
            self.timeline.add(before if keep else None, before.tick, pressed, graph, frame)
            if keep:
                self._hold(before.state)
        return frame

    def rehearse(self, graph: str = "tick") -> None:
        """Make the next frame and throw it away, to see how long it takes; nothing changes."""
        self._arrive()
        self._run(graph, self.world.action(()), {})

    def tick_async(self, actions: Collection[str] = (), *, answers: int = 0) -> Finished | None:
        """Ask for a tick in a thread of its own and return at once: the newest finished frame, None before the first.

        For hosts that run faster than the world, or must never wait. Until `stop_async`, call nothing else that ticks.
        """
        if self._worker is None:
            self._worker = Worker(self)
        return self._worker.ask(actions, answers)

    def stop_async(self) -> None:
        """Let the tick in work finish, forget those that wait; the session is the caller's again."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def correct(self, actions: Collection[str], *, answers: int = 0) -> np.ndarray:
        """Roll back: make the latest tick once more with the actions that came too late for it.

        The state is then, bit for bit, that of a session that knew them beforehand.
        """
        if self._undo is None:
            raise UsageError("there is no tick to correct: call tick first, and correct before anything else")
        if self.timeline is not None:
            self.timeline.branch.at = self._undo.tick
        self._adopt(self._undo)
        return self.tick(actions, answers=answers)

    def peek(self) -> State:
        """The latest state's arrays, to look at; they are overwritten by later ticks."""
        self._arrive()
        return dict(self._state)

    @property
    def reward(self) -> float | None:
        """Of the latest tick. None in worlds that were not trained to tell it."""
        return float(self.peek()["reward"][0]) if "reward" in self.world.manifest.state else None

    @property
    def terminated(self) -> bool:
        """Whether the game ended with the latest tick: never in worlds that were not trained to tell it.

        The world can be played on; what to do about an end is its host's business.
        """
        return "terminated" in self.world.manifest.state and bool(self.peek()["terminated"][0])

    def set_prompt(self, text: str) -> None:
        """Turn the world towards another text, or to a place between two (runtime/prompt.py), from the next tick on."""
        embedding = embed_prompt(self.backend, text)
        self._arrive()
        self._state = self.backend.recache(self._state, embedding)
        self._embedding, self.prompt, self._undo = embedding, text, None

    def snapshot(self) -> bytes:
        """All of the session, to go on from later: the same actions then give the same frames."""
        self._arrive()
        about = snapshot.About(self.world.hash, self.seed, self.tick_number, self.start, self.prompt, self.last_action)
        return snapshot.pack(about, {**self._state, snapshot.EMBEDDING: self._embedding})

    def restore(self, data: bytes) -> None:
        """Go on from a snapshot of this world. Whole or not at all: after an error the session is as it was."""
        about, arrays = snapshot.unpack(data, self.world)
        embedding = arrays.pop(snapshot.EMBEDDING)
        state = {name: aligned_zeros(array.shape, array.dtype) for name, array in arrays.items()}
        for name, array in arrays.items():
            state[name][...] = array
        if self._worker is not None:
            self._worker.reset()
        self._begin(Moment(about.seed, about.tick, about.start, about.prompt, embedding, state, about.held))

    def rewind(self, ticks: int = 1) -> np.ndarray:
        """Go back, at most to the oldest tick that is remembered; the frame that was shown then."""
        return self.seek(max(self.tick_number - ticks, self._past().first))

    def seek(self, tick: int) -> np.ndarray:
        """Go to any remembered tick of this branch, earlier or later; its frame. What lies after it is remembered
        until another tick is made from here; `fork` keeps it."""
        timeline = self._past()
        if not timeline.branch.steps:
            raise UsageError("nothing to go back to: no tick has been made since the game began")
        if not timeline.first <= tick <= timeline.last:
            raise UsageError(f"tick {tick} is not remembered; ticks {timeline.first} to {timeline.last} are")
        moment, steps = timeline.way_to(tick)
        timeline.branch.at = tick
        # Only the picture is there now; the state is made when something needs it, so that rewinding costs no ticks.
        self._away = (moment, steps)
        self.tick_number, self.prompt, self._undo = tick, moment.prompt, None
        self.last_action, self.last_graph = steps[-1].actions, steps[-1].graph
        self.frame = frame = timeline.frame(tick)
        return frame

    def fork(self, name: str) -> None:
        """Go on as a new branch of this name; the one so far stays as it is, its future after this tick included."""
        self._past().fork(name)

    def switch(self, name: str) -> np.ndarray:
        """Go to another branch, where it was left; its frame then."""
        timeline = self._past()
        left = timeline.current
        at = timeline.switch(name)
        if not timeline.branch.steps:
            timeline.switch(left)
            raise UsageError(f"branch {name!r} is empty: no tick had been made when it was left")
        return self.seek(max(at, timeline.first))

    def _answer(self, pressed: frozenset[str]) -> str:
        return "reprime" if pressed != self.last_action and "reprime" in self.graphs else "tick"

    def _advance(self, pressed: frozenset[str], graph: str) -> np.ndarray:
        """One tick of the state, nothing else."""
        before = self._state
        frame, after = self._run(graph, self.world.action(pressed), self._spare)
        # Two states back nobody looks any more, so its arrays are free, except those that moments or newer states hold.
        newer = {id(array) for state in (before, after) for array in state.values()}
        self._spare = {
            name: array for name, array in self._older.items() if id(array) not in newer and id(array) not in self._held
        }
        self._older, self._state = before, after
        self._held &= newer | {id(array) for array in self._spare.values()}
        self.tick_number += 1
        self.last_action, self.last_graph = pressed, graph
        return frame[0]

    def _run(self, graph: str, action: np.ndarray, into: State) -> tuple[np.ndarray, State]:
        noise = tick_noise(self.seed, self.tick_number, (1, *noise_shape(self.world, graph)))
        return tick_by(self.backend, graph, self._state, action, self._embedding, noise, into)

    def _moment(self) -> Moment:
        return Moment(
            self.seed, self.tick_number, self.start, self.prompt, self._embedding, self._state, self.last_action
        )

    def _adopt(self, moment: Moment) -> None:
        """Be where the moment was; its arrays stay as they are."""
        self.seed, self.tick_number, self.start, self.prompt = moment.seed, moment.tick, moment.start, moment.prompt
        self._embedding, self._state, self.last_action = moment.embedding, moment.state, moment.last_action
        self._older = {}
        self._spare = {}
        self._held = set()
        self._hold(moment.state)
        self._undo = None
        self._away = None

    def _hold(self, state: State) -> None:
        """Never write to these arrays again."""
        self._held |= {id(array) for array in state.values()}

    def _begin(self, moment: Moment) -> None:
        """Another game: from here on, with no past."""
        self._adopt(moment)
        self.last_graph, self.answered = "tick", 0
        self.frame = None
        if self.timeline is not None:
            self.timeline.clear(moment.tick)

    def _arrive(self) -> None:
        """Make the state of the tick that was sought: from the nearest kept moment, tick by tick."""
        if self._away is not None:
            moment, steps = self._away
            self._adopt(moment)
            for step in steps:
                self._advance(step.actions, step.graph)

    def _past(self) -> Timeline:
        if self.timeline is None:
            raise UsageError("this session remembers no past: make it with Session(world, rewind_mb=256)")
        return self.timeline


def graphs_of(backend: Backend) -> tuple[str, ...]:
    """Names of the graphs that it can tick by; `tick` is the first."""
    more = backend.headers if isinstance(backend, GraphBackend) else ()
    return ("tick", *(name for name in ("reprime", "tick_fast") if name in more))


def noise_shape(world: World, graph: str) -> tuple[int, ...]:
    """Of one player's noise in one tick by this graph."""
    graphs = world.manifest.graphs
    return (graphs[graph].noise if graph in graphs else None) or world.manifest.noise


def tick_by(
    backend: Backend, graph: str, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
) -> tuple[np.ndarray, State]:
    """`Backend.tick` by one of `graphs_of`, with noise of that graph's shape."""
    if graph == "tick":
        return backend.tick(state, action, prompt, noise, into)
    assert isinstance(backend, GraphBackend), "only these have other graphs"
    return backend.tick_by(graph, state, action, prompt, noise, into)


def fits(world: World, rewind_mb: float) -> bool:
    """Whether this many MB can hold a past of the world worth the name."""
    return rewind_mb * (1 << 20) >= STATES_AT_LEAST * state_bytes(world)


def state_bytes(world: World) -> int:
    return sum(spec.nbytes for spec in world.manifest.state.values())


def _timeline(world: World, rewind_mb: float) -> Timeline:
    manifest = world.manifest
    if not fits(world, rewind_mb):
        raise UsageError(
            f"rewind_mb={rewind_mb:g} does not hold {STATES_AT_LEAST} states of world {manifest.name!r}, "
            f"{state_bytes(world) / (1 << 20):.1f} MB each: give more, or 0"
        )
    frame_shape = (manifest.height, manifest.width, 3)
    ticks = round(REWIND_SECONDS * manifest.tick_hz)
    return Timeline(int(rewind_mb * (1 << 20)), state_bytes(world), ticks, frame_shape)

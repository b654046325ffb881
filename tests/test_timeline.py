"""Going back in time, branching and going on: the future is always the same bytes, within the memory given."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import write_rolling

from runtime.backends import load_backend
from runtime.errors import UsageError
from runtime.session import Session
from runtime.world import World

NAMES = ("left", "right", "gas", "brake")


def mock(**options) -> Session:
    return Session(World.open("mock"), rewind_mb=4, **options)


def drive(session: Session, ticks: int, seed: int = 0) -> list[np.ndarray]:
    rng = random.Random(seed)
    return [session.tick({name for name in NAMES if rng.random() < 0.4}).copy() for _ in range(ticks)]


def sparse(session: Session, interval: int) -> Session:
    """Keyframes only every `interval` ticks, as a world with a large state has them."""
    timeline = session.timeline
    timeline.state_bytes = interval * timeline.budget // timeline.ticks
    return session


def test_rewinding_shows_every_frame_again_backwards():
    session = mock()
    frames = drive(session, 50)
    assert all(np.array_equal(session.rewind(), frame) for frame in frames[-2::-1])
    assert session.tick_number == 1
    assert np.array_equal(session.rewind(), frames[0])  # the oldest: it stays there


@pytest.mark.parametrize("interval", [1, 2, 7, 60])
def test_after_rewinding_the_same_keys_make_the_same_frames(interval):
    session = sparse(mock(), interval)
    frames = drive(session, 40, seed=1)
    session.set_prompt("a red road in white snow")
    frames += drive(session, 40, seed=2)
    plain = Session(World.open("mock"))
    plain_frames = drive(plain, 40, seed=1)
    plain.set_prompt("a red road in white snow")
    plain_frames += drive(plain, 20, seed=2)
    session.rewind(20)
    assert session.tick_number == 60
    assert session.snapshot() == plain.snapshot()
    assert all(np.array_equal(a, b) for a, b in zip(drive(session, 20, seed=9), drive(plain, 20, seed=9), strict=True))


def test_a_rewound_future_can_be_sought_until_something_else_is_played():
    session = mock()
    frames = drive(session, 30)
    session.rewind(20)
    assert np.array_equal(session.seek(25), frames[24])
    session.rewind(10)
    session.tick({"gas"})
    with pytest.raises(UsageError, match="ticks 1 to 16 are"):
        session.seek(17)


def test_branches_keep_their_own_futures():
    session = mock()
    drive(session, 20, seed=0)
    main = drive(session, 20, seed=1)
    session.rewind(20)
    session.fork("other")
    other = drive(session, 20, seed=2)
    assert np.array_equal(session.switch("main"), drive_end(20))
    assert np.array_equal(session.seek(40), main[-1])
    assert np.array_equal(session.switch("other"), other[-1])
    assert session.timeline.used == sum(
        session.timeline._size(step) for step in {s for b in session.timeline.branches.values() for s in b.steps}
    )


def drive_end(ticks: int) -> np.ndarray:
    return drive(Session(World.open("mock")), ticks, seed=0)[-1]


def test_memory_stays_within_the_budget_and_the_newest_past_stays():
    session = Session(World.open("mock"), rewind_mb=0.125)
    frames = drive(session, 800)
    assert session.timeline.used <= 1 << 17
    first = session.timeline.first
    assert 1 < first < 780
    assert np.array_equal(session.seek(first), frames[first - 1])
    with pytest.raises(UsageError, match="not remembered"):
        session.seek(first - 1)


@pytest.mark.parametrize("state_mb", [0.001, 1.2, 3.0])
def test_a_minute_fits_the_budget_of_a_window(state_mb):
    """The arithmetic of keyframes: 256 MB, 25 ticks a second, pictures of 15 KB."""
    from runtime.timeline import Moment, Timeline

    timeline = Timeline(256 << 20, int(state_mb * (1 << 20)), 1500, (96, 96, 3))
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    noise[::2] = 0
    nothing = Moment(0, 0, None, "x", np.zeros(1), {}, frozenset())
    for tick in range(4000):
        timeline.add(nothing if timeline.wants_keyframe("x") else None, tick, frozenset(), "tick", noise)
    assert timeline.used <= timeline.budget and timeline.last - timeline.first >= 1500 - timeline.interval


def test_a_correction_is_the_run_that_knew_the_keys():
    for rewind_mb in (0, 4):
        guessed, knew = (Session(World.open("mock"), rewind_mb=rewind_mb) for _ in range(2))
        drive(guessed, 30)
        drive(knew, 30)
        guessed.tick({"gas"})
        late = guessed.correct({"left"})
        assert np.array_equal(late, knew.tick({"left"}))
        assert guessed.snapshot() == knew.snapshot()
        assert all(np.array_equal(a, b) for a, b in zip(drive(guessed, 9), drive(knew, 9), strict=True))


def test_without_a_past_it_says_how_to_have_one():
    session = Session(World.open("mock"))
    with pytest.raises(UsageError, match="rewind_mb=256"):
        session.rewind()
    with pytest.raises(UsageError, match="no tick to correct"):
        session.correct({"gas"})
    with pytest.raises(UsageError, match="nothing to go back to"):
        mock().rewind()


KEYS = st.frozensets(st.sampled_from(NAMES))
ONE_KEY = st.frozensets(st.just("gas"))  # often held, often changed
ELSE = st.one_of(
    st.tuples(st.just("prompt"), st.sampled_from(["red", "blue and pink", "white"])),
    st.tuples(st.just("rewind"), st.integers(1, 6)),
    st.tuples(st.just("fork"), st.none()),
    st.tuples(st.just("switch"), st.integers(0, 3)),
    st.tuples(st.just("save"), st.none()),
    st.tuples(st.just("load"), st.none()),
)


def stories(keys: st.SearchStrategy[frozenset[str]]) -> st.SearchStrategy[list]:
    return st.lists(st.one_of(st.tuples(st.just("tick"), keys), st.tuples(st.just("tick"), keys), ELSE), max_size=40)


class Truth:
    """What should be remembered, as plain lists. A branch's tick: the prompts set before it, and its keys.

    before: everything that happened before this timeline began. pending: prompts that no tick has followed yet; they
    are gone when the player goes somewhere else.
    """

    def __init__(self, fresh: Callable[..., Session]) -> None:
        self.fresh = fresh
        self.before: list = []
        self.begin()

    def begin(self) -> None:
        self.branches, self.at, self.current, self.pending = {"main": []}, {"main": 0}, "main", ()

    @property
    def past(self) -> list:
        return self.branches[self.current][: self.at[self.current]]

    @property
    def held(self) -> frozenset[str]:
        """The keys of the latest tick."""
        ticks = [keys for _, keys in [*self.before, *self.past] if keys is not None]
        return ticks[-1] if ticks else frozenset()

    def go(self, tick: int) -> None:
        self.at[self.current], self.pending = max(1, tick), ()

    def session(self) -> Session:
        """Without a past: made anew from every prompt and key since the start."""
        session = self.fresh()
        for prompts, keys in [*self.before, *self.past, (self.pending, None)]:
            for prompt in prompts:
                session.set_prompt(prompt)
            if keys is not None:
                session.tick(keys)
        return session


@pytest.fixture(scope="module")
def rolling(tmp_path_factory) -> Callable[..., Session]:
    """Makes sessions of a world with a frame in flight."""
    world = World.open(write_rolling(tmp_path_factory.mktemp("worlds") / "rolling.world"))
    return partial(Session, world, backend=load_backend(world, "onnxruntime", threads=1), seed=3)


@settings(max_examples=60, deadline=None)
@given(stories(KEYS), st.sampled_from([1, 3, 50]))
def test_whatever_is_done_with_time_the_state_is_that_of_its_story(doings, interval):
    check_story(partial(Session, World.open("mock"), seed=3), doings, interval)


@settings(max_examples=60, deadline=None)
@given(stories(ONE_KEY), st.sampled_from([1, 3, 50]))
def test_frames_in_flight_belong_to_the_story_too(rolling, doings, interval):
    """A key that was held before a save is held after it: nothing is made anew that was right."""
    check_story(rolling, doings, interval)


def check_story(fresh: Callable[..., Session], doings: list, interval: int) -> None:
    """fresh: makes the session at its beginning."""
    session, truth, saved = sparse(fresh(rewind_mb=4), interval), Truth(fresh), None
    for kind, value in doings:
        if kind == "tick":
            session.tick(value)
            truth.branches[truth.current] = [*truth.past, (truth.pending, value)]
            truth.at[truth.current] += 1
            truth.pending = ()
        elif kind == "prompt":
            session.set_prompt(value)
            truth.pending = (*truth.pending, value)
        elif kind == "rewind" and truth.branches[truth.current]:
            session.rewind(value)
            truth.go(truth.at[truth.current] - value)
        elif kind == "fork":
            name = f"branch {len(truth.branches)}"
            session.fork(name)
            truth.branches[name], truth.at[name] = truth.past, truth.at[truth.current]
            truth.current = name
        elif kind == "switch":
            name = list(truth.branches)[value % len(truth.branches)]
            if truth.branches[name]:
                session.switch(name)
                truth.current = name
                truth.go(truth.at[name])
        elif kind == "save":
            story = [*truth.before, *truth.past, (truth.pending, None)]
            saved = session.snapshot(), story
        elif kind == "load" and saved:
            session.restore(saved[0])
            truth.begin()
            truth.before = saved[1]
        assert session.last_action == truth.held
    expected = truth.session()
    assert session.snapshot() == expected.snapshot()
    keys = ["gas", "left"]
    assert np.array_equal(session.tick(keys), expected.tick(keys)) and session.last_graph == expected.last_graph

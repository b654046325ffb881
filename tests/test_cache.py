"""Caches remember what the public implementations remember, at the same positions, for every window and sink.

Beside each cache stands the plain one: a buffer that is shifted when it is full, with the two pointers of the public
code. Keys are one-hot vectors that name their frame, so that what a sink has become can be read off.
"""

import pytest
import torch

from worldmodel.cache.base import commit, empty_slots, gather
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.errors import SpecError

FRAMES = 60


def name_of(frame: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(frame), FRAMES).float()


class Shifted:
    """A buffer of frames, moved to make room: [sink | the rest by age]."""

    def __init__(self, window: int, sink: int, alpha: float | None = None) -> None:
        self.window, self.sink, self.alpha = window, sink, alpha
        self.held: list[tuple[int, torch.Tensor]] = []  # frame, key

    def make_room(self, first: int, chunk: int) -> None:
        """The first pass of a block: drop what must go, then put the block's own frames in."""
        leaving = max(0, len(self.held) + chunk - self.window)
        gone = self.held[self.sink : self.sink + leaving]
        del self.held[self.sink : self.sink + leaving]
        if self.alpha is not None and gone:
            for i, (_, key) in enumerate(gone[: self.sink]):
                frame, own = self.held[i]
                fused = self.alpha * own + (1 - self.alpha) * key if len(gone) == self.sink else key
                self.held[i] = frame, fused
        self.held += [(frame, name_of(frame)) for frame in range(first, first + chunk)]


def store(cache, state):
    return {**state, "kv.self.k": torch.zeros(1, 1, cache.slots, 1, 1, FRAMES)}


def block(first: int, chunk: int) -> dict[str, torch.Tensor]:
    return {"kv.self.k": torch.stack([name_of(f) for f in range(first, first + chunk)])[None, None, :, None, None]}


def seen(cache, state, frames, clean=False, ahead=0):
    """What a reading shows: (position, key) pairs in order, and the positions of the queries."""
    reading = cache.read(state, frames, ahead, clean)
    keys = gather(state["kv.self.k"], reading)[0, 0, :, 0, 0]
    shown = [(int(p), k) for p, k, ok in zip(reading.positions[0], keys, reading.valid[0], strict=True) if ok]
    return shown, reading.query_positions[0].tolist()


def same(got, want) -> bool:
    return len(got) == len(want) and all(
        p == q and torch.allclose(a, b) for (p, a), (q, b) in zip(got, want, strict=True)
    )


SIZES = [
    (window, sink, chunk)
    for window, sink, chunk in [
        (9, 3, 3),
        (10, 3, 3),
        (12, 3, 3),
        (6, 0, 3),
        (7, 1, 3),
        (8, 0, 4),
        (5, 2, 1),
        (11, 5, 2),
    ]
]


@pytest.mark.parametrize("window, sink, chunk", SIZES)
@pytest.mark.parametrize("relative", [False, True])
def test_sink_and_window_are_those_of_a_shifted_buffer(window, sink, chunk, relative):
    cache = (RelativeSinkWindow if relative else SinkWindow)(window, sink, chunk)
    state, plain = store(cache, empty_slots(cache, 1)), Shifted(window, sink)
    for first in range(0, FRAMES - chunk, chunk):
        plain.make_room(first, chunk)
        past = plain.held[:-chunk]
        want = [(place if relative else frame, key) for place, (frame, key) in enumerate(past)]
        shown, queries = seen(cache, state, chunk)
        assert same(shown, want)
        start = len(past) if relative else first
        assert queries == list(range(start, start + chunk))
        state = commit(cache, state, block(first, chunk))


@pytest.mark.parametrize("window, sink, chunk", [s for s in SIZES if s[1]] + [(12, 6, 6), (9, 1, 3)])
def test_the_moving_average_is_that_of_a_shifted_buffer(window, sink, chunk):
    cache = EmaSink(window, sink, chunk, alpha=0.75)
    state, plain = store(cache, empty_slots(cache, 1)), Shifted(window, sink, alpha=0.75)
    for first in range(0, FRAMES - chunk, chunk):
        plain.make_room(first, chunk)
        past = plain.held[:-chunk]
        shown, queries = seen(cache, state, chunk)
        if first + chunk < sink:  # the public code reads zeros for the part of its sink that is not there yet
            absent, shown = shown[-(sink - first - chunk) :], shown[: -(sink - first - chunk)]
            assert all(not key.any() for _, key in absent)
        assert same(shown, list(enumerate(key for _, key in past)))
        assert queries == list(range(len(past), len(past) + chunk))
        state = commit(cache, state, block(first, chunk))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.9])
def test_the_moving_average_has_its_closed_form(alpha):
    """After n fusions: αⁿ·first + (1−α)·Σ αⁿ⁻ⁱ·i-th that left. α = 1 never changes, α = 0 is the last that left."""
    cache = EmaSink(window=4, sink=1, chunk=1, alpha=alpha)
    state = store(cache, empty_slots(cache, 1))
    for frame in range(20):
        state = commit(cache, state, block(frame, 1))
    fusions = 20 - 4
    want = alpha**fusions * name_of(0)
    for i in range(1, fusions + 1):
        want = want + (1 - alpha) * alpha ** (fusions - i) * name_of(i)
    assert torch.allclose(state["kv.self.k"][0, 0, 0, 0, 0], want, atol=1e-6)


@pytest.mark.parametrize(
    "capacity, attention, chunk", [(24, 21, 3), (24, 20, 3), (12, 12, 3), (9, 7, 2), (10, 6, 1), (23, 21, 3)]
)
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_the_rolling_sink_stands_where_the_public_code_puts_it(capacity, attention, chunk, blocks):
    """blocks: length of the noisy window that starts at each block."""
    cache = RollingSink(capacity, chunk, chunk, attention)
    state, plain = store(cache, empty_slots(cache, 1)), Shifted(capacity, chunk)
    for first in range(0, FRAMES - chunk, chunk):
        plain.make_room(first, chunk)
        past = plain.held[:-chunk]
        noisy, clean = [], []
        if first:
            budget = max(0, attention - blocks * chunk - chunk)
            recent = past[chunk:][max(0, len(past) - chunk - budget) :] if budget else []
            start = first - len(recent) - chunk
            noisy = [(start + i, key) for i, (_, key) in enumerate(past[:chunk])] + recent
            cut = max(0, len(plain.held) - attention)
            clean = past[cut:]
        shown, queries = seen(cache, state, blocks * chunk)
        assert same(shown, noisy) and queries == list(range(first, first + blocks * chunk))
        shown, queries = seen(cache, state, chunk, clean=True)
        assert same(shown, clean) and queries == list(range(first, first + chunk))
        state = commit(cache, state, block(first, chunk))


def test_a_player_does_not_notice_the_other():
    """Two players of one batch, 7 and 31 frames into the game, read and write what each would alone."""
    cache = EmaSink(window=9, sink=3, chunk=1, alpha=0.5)
    alone = []
    for frames in (7, 31):
        state = store(cache, empty_slots(cache, 1))
        for frame in range(frames):
            state = commit(cache, state, block(frame, 1))
        alone.append(state)
    both = {name: torch.cat([a[name] for a in alone]) for name in alone[0]}
    fresh = {"kv.self.k": torch.cat([block(7, 1)["kv.self.k"], block(31, 1)["kv.self.k"]])}
    after = commit(cache, both, fresh)
    for player, frames in enumerate((7, 31)):
        want = commit(cache, alone[player], block(frames, 1))
        assert all(torch.equal(after[name][player], want[name][0]) for name in want)
        reading, one = cache.read(both, 1), cache.read(alone[player], 1)
        assert torch.equal(reading.positions[player], one.positions[0])
        assert torch.equal(gather(both["kv.self.k"], reading)[player], gather(alone[player]["kv.self.k"], one)[0])


def test_committing_leaves_the_state_as_it_was():
    cache = EmaSink(window=4, sink=1, chunk=1)
    state = store(cache, empty_slots(cache, 1))
    for frame in range(6):
        before = {name: value.clone() for name, value in state.items()}
        after = commit(cache, state, block(frame, 1))
        assert all(torch.equal(state[name], before[name]) for name in before)
        state = after


@pytest.mark.parametrize("frames, renewed", [(6, range(6)), (9, range(9)), (12, range(6, 12)), (30, range(24, 30))])
def test_a_renewal_keeps_the_sink_once_frames_have_left(frames, renewed):
    """Window 9, sink 3: while nothing has left, all is computed again, the sink too; later only what is behind it."""
    cache = SinkWindow(window=9, sink=3, chunk=3)
    state = store(cache, empty_slots(cache, 1))
    for first in range(0, frames, 3):
        state = commit(cache, state, block(first, 3))
    renewal = cache.renew(state, keep_sink=True)
    live = renewal.live[0]
    assert renewal.frames[0, live].tolist() == list(renewed)
    held = state["cache.frame"][0]
    assert held[renewal.slots[0, live]].tolist() == list(renewed)  # each goes back to where it was
    kept = renewal.context.valid[0].tolist()
    assert kept == [frames > 9] * 3


def test_a_renewal_without_the_sink_makes_the_oldest_frames_the_sink():
    cache = SinkWindow(window=9, sink=3, chunk=3)
    state = store(cache, empty_slots(cache, 1))
    for first in range(0, 30, 3):
        state = commit(cache, state, block(first, 3))
    renewal = cache.renew(state, keep_sink=False)
    assert renewal.live.all() and renewal.frames[0].tolist() == list(range(21, 30))
    assert renewal.slots[0, :3].tolist() == [0, 1, 2]
    assert not renewal.context.valid.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: SinkWindow(window=3, sink=2, chunk=2),
        lambda: SinkWindow(window=3, sink=-1),
        lambda: EmaSink(window=9, sink=0),
        lambda: EmaSink(window=9, sink=3, alpha=1.5),
        lambda: RollingSink(window=24, sink=3, chunk=2),
        lambda: RollingSink(window=24, sink=3, chunk=3, attention=5),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(make):
    with pytest.raises(SpecError, match="cache"):
        make()

"""A session is its seed, start, prompts and actions: the same ones give the same bytes, here and after loading."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import PromptError, SnapshotError, UsageError
from runtime.session import Session
from runtime.world import World

NAMES = ("left", "right", "gas", "brake")


def drive(session: Session, ticks: int, seed: int = 0) -> int:
    """Press keys at random; CRC-32 of the frames."""
    rng, crc = random.Random(seed), 0
    for _ in range(ticks):
        crc = zlib.crc32(session.tick({name for name in NAMES if rng.random() < 0.4}).tobytes(), crc)
    return crc


def test_the_same_game_twice_is_the_same_bytes():
    assert drive(Session(World.open("mock"), seed=5), 300) == drive(Session(World.open("mock"), seed=5), 300)


def test_the_same_game_in_another_process_is_the_same_bytes():
    program = "import test_session as t; print(t.drive(t.Session(t.World.open('mock'), seed=5), 300))"
    path = [p for p in sys.path if p]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == drive(Session(World.open("mock"), seed=5), 300)


def test_another_seed_is_another_game():
    assert drive(Session(World.open("mock"), seed=1), 300) != drive(Session(World.open("mock"), seed=2), 300)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match="seed"):
        Session(World.open("mock"), seed=seed)


def test_frames_are_new_arrays_that_stay_as_they_are():
    session = Session(World.open("mock"))
    first = session.tick({"gas"})
    kept = first.copy()
    drive(session, 50)
    assert first.dtype == np.uint8 and first.shape == (64, 96, 3)
    assert np.array_equal(first, kept)


def test_the_car_turns_to_the_side_of_the_key():
    headings = {}
    for key in ("left", "right"):
        session = Session(World.open("mock"))
        for _ in range(60):
            session.tick({"gas", key})
        headings[key] = float(session._state["car"][0, 2])
    assert headings["left"] < -0.5 and headings["right"] > 0.5


def test_a_prompt_shows_in_the_next_frame():
    session = Session(World.open("mock"))
    before = session.tick()
    session.set_prompt("a white road in purple fields")
    after = session.tick()
    assert np.abs(before.astype(int) - after).mean() > 20
    assert session.prompt == "a white road in purple fields"


@pytest.mark.parametrize("text", ["", "   ", "colourless", "x" * 5000])
def test_a_prompt_that_cannot_be_used_changes_nothing(text):
    session, twin = Session(World.open("mock")), Session(World.open("mock"))
    with pytest.raises(PromptError):
        session.set_prompt(text)
    assert session.prompt == twin.prompt and drive(session, 20) == drive(twin, 20)


def test_restarting_plays_the_same_game_again():
    session = Session(World.open("mock"), seed=9)
    first = drive(session, 100)
    session.set_prompt("a red road")
    session.restart()
    assert session.tick_number == 0 and drive(session, 100) == first


@settings(max_examples=40, deadline=None)
@given(
    before=st.integers(0, 120),
    between=st.integers(0, 60),
    prompt=st.sampled_from([None, "red", "a blue road in pink sand"]),
)
def test_the_future_after_loading_is_the_future_without(before, between, prompt):
    session = Session(World.open("mock"), seed=before)
    drive(session, before)
    if prompt:
        session.set_prompt(prompt)
    saved = session.snapshot()
    future = drive(session, 80, seed=1)
    drive(session, between, seed=2)
    session.restore(saved)
    assert session.tick_number == before
    assert drive(session, 80, seed=1) == future
    fresh = Session(World.open("mock"), seed=77)
    fresh.restore(saved)
    assert (fresh.seed, fresh.prompt) == (before, session.prompt)
    assert drive(fresh, 80, seed=1) == future


@pytest.fixture(scope="module")
def saved() -> bytes:
    session = Session(World.open("mock"), seed=3)
    drive(session, 30)
    return session.snapshot()


def refuse(data: bytes) -> None:
    """Loading fails, and the session plays on as if nobody had tried."""
    session, twin = Session(World.open("mock"), seed=4), Session(World.open("mock"), seed=4)
    drive(session, 10), drive(twin, 10)
    with pytest.raises(SnapshotError):
        session.restore(data)
    assert session.tick_number == 10 and drive(session, 20, seed=6) == drive(twin, 20, seed=6)


def test_a_snapshot_cut_off_anywhere_is_refused(saved):
    for size in [*range(40), len(saved) // 2, len(saved) - 1]:
        refuse(saved[:size])
    refuse(saved + b"x")


def test_a_snapshot_with_any_bit_flipped_is_refused_or_the_same(saved):
    """A flipped bit in the header's texts or numbers may give another valid header; one in the state never passes."""
    rng = random.Random(0)
    header_end = 12 + int.from_bytes(saved[8:12], "little")
    for _ in range(300):
        data = bytearray(saved)
        data[rng.randrange(header_end, len(saved))] ^= 1 << rng.randrange(8)
        with pytest.raises(SnapshotError):
            Session(World.open("mock")).restore(bytes(data))
        data = bytearray(saved)
        data[rng.randrange(header_end)] ^= 1 << rng.randrange(8)
        try:
            Session(World.open("mock")).restore(bytes(data))
        except SnapshotError:
            continue


def test_a_snapshot_of_another_world_is_refused(saved, tiny_file):
    session = Session(World.open(tiny_file), backend="onnxruntime", threads=1)
    with pytest.raises(SnapshotError, match="another world"):
        session.restore(saved)


def test_random_bytes_are_no_snapshot():
    rng = random.Random(5)
    for size in (0, 8, 100, 5000):
        refuse(rng.randbytes(size))
        refuse(b"WLSNAP01" + rng.randbytes(size))

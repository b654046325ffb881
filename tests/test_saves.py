"""Saved games have names and pictures, survive a crash, and damaged ones are refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from runtime.errors import SnapshotError
from runtime.saves import Saves, pack_slot, slot_of, unpack_slot
from runtime.session import Session
from runtime.world import World


@pytest.fixture
def played() -> Session:
    session = Session(World.open("mock"), seed=2)
    for _ in range(30):
        session.tick({"gas", "left"})
    return session


def test_a_saved_game_has_its_name_its_picture_and_its_future(tmp_path, played):
    saves = Saves(tmp_path / "mock")
    assert saves.names() == []
    saves.save(played, "before the bend", 1000.0)
    saves.save(played, "2", 1001.0)
    shown, future = played.frame, [played.tick({"gas"}) for _ in range(5)]
    assert saves.names() == ["2", "before the bend"]
    slot = saves.load(played, "before the bend")
    assert slot.tick == played.tick_number == 30 and slot.saved_at == 1000.0
    assert np.array_equal(slot.thumbnail, shown)  # a small frame is its own thumbnail
    assert all(np.array_equal(played.tick({"gas"}), frame) for frame in future)


def test_a_large_frame_becomes_a_small_picture():
    from runtime.saves import thumbnail

    assert thumbnail(np.zeros((480, 832, 3), np.uint8)).shape == (54, 93, 3)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "~1", ".hidden", "x" * 61, "end ", "a\0b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, played, name):
    with pytest.raises(SnapshotError, match="a save's name"):
        Saves(tmp_path).save(played, name, 0.0)


def test_a_missing_game_lists_those_that_are_there(tmp_path, played):
    saves = Saves(tmp_path)
    saves.save(played, "one", 0.0)
    with pytest.raises(SnapshotError, match="no game is saved as 'two'; there are: one"):
        saves.load(played, "two")


def test_after_a_crash_the_autosave_is_found_once(tmp_path, played):
    program = (
        f"import os, sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; from runtime.saves import Saves\n"
        "from runtime.session import Session; from runtime.world import World\n"
        "session = Session(World.open('mock')); session.tick({'gas'}); session.tick({'left'})\n"
        f"Saves(Path({str(tmp_path)!r})).autosave(session, 5.0); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    saves = Saves(tmp_path)
    saves.autosave(played, 6.0)  # another one that still runs: ours
    assert saves.names() == []
    slot = saves.take_crashed()
    assert slot is not None and slot.tick == 2
    assert saves.take_crashed() is None and (tmp_path / f"~{os.getpid()}.save").exists()
    saves.finished()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_game_is_refused_or_the_same(tmp_path, played):
    whole = pack_slot(slot_of(played, "x", 1.0))
    rng = random.Random(1)
    for size in [*range(30), len(whole) - 1]:
        with pytest.raises(SnapshotError):
            unpack_slot(whole[:size], "it")
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(SnapshotError):
            unpack_slot(bytes(data), "it")

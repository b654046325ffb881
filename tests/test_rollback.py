"""Frames in flight were made for another key: rollback shows the key in the next frame, and nothing is left of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_world import write_rolling

from runtime.governor import Pipe
from runtime.replay import Recorder, open_replay, play_again
from runtime.session import Session
from runtime.world import World


@pytest.fixture(scope="module")
def rolling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rolling(tmp_path_factory.mktemp("worlds") / "rolling.world")


def session(rolling: Path, **options) -> Session:
    return Session(World.open(rolling), backend="onnxruntime", threads=1, seed=3, **options)


def response(rolling: Path, answer: str) -> int:
    """Ticks from the key to the first frame that differs from the future without it; 1: the very next frame."""
    keyed, still = session(rolling), session(rolling)
    pipe = Pipe(keyed.in_flight if answer == "off" else 0)
    graph = None if answer == "rollback" else "tick"
    for tick in range(1, 10):
        ours = keyed.tick(pipe(frozenset({"gas"})), graph=graph)
        if not np.array_equal(ours, still.tick((), graph="tick")):
            return tick
    raise AssertionError("the key never showed")


def test_a_key_shows_in_the_next_frame_after_a_rollback_and_later_without(rolling):
    assert session(rolling).graphs == ("tick", "reprime") and session(rolling).in_flight == 1
    # Nothing can be told to this world's frame in flight any more: `late` waits for it, `off` one frame longer.
    assert [response(rolling, answer) for answer in ("rollback", "late", "off")] == [1, 2, 3]


def test_steady_input_costs_one_pass(rolling):
    playing = session(rolling)
    graphs = []
    for keys in [set(), set(), {"gas"}, {"gas"}, {"left"}, {"left"}, set()]:
        playing.tick(keys)
        graphs.append(playing.last_graph)
    assert graphs == ["tick", "tick", "reprime", "tick", "reprime", "tick", "reprime"]


def test_the_state_after_a_rollback_is_that_of_a_game_that_knew_the_key(rolling):
    """Different keys were held, so different frames were in flight; then the same key is pressed in both."""
    guessed, knew = session(rolling), session(rolling)
    for game in (guessed, knew):
        for _ in range(5):
            game.tick({"left"})
    guessed.tick({"right"})  # the guess for this tick, made and shown before the key arrived
    guessed.correct({"gas"})
    knew.tick({"gas"})
    assert guessed.snapshot() == knew.snapshot()
    again = [game.tick({"gas", "left"}) for game in (guessed, knew)]
    assert np.array_equal(*again) and guessed.snapshot() == knew.snapshot()


def test_rewinding_and_replays_repeat_the_choice_of_graph(rolling, tmp_path):
    playing = session(rolling, rewind_mb=1)
    playing.timeline.state_bytes = playing.timeline.budget // 50  # keyframes far apart
    recorder = Recorder(tmp_path / "r.replay", playing, str(rolling))
    keys = [{"gas"}] * 3 + [set()] * 4 + [{"left"}] * 5 + [{"right"}, set()] * 4
    frames, states = [], []
    for tick, pressed in enumerate(keys):
        frames.append(playing.tick(pressed, graph="tick" if tick % 3 else None))
        recorder.tick(playing, frames[-1])
        states.append(playing.snapshot())
    recorder.close()
    replay = open_replay(tmp_path / "r.replay")
    assert {record[4] for record in replay.records if len(record) > 4} == {"reprime"}
    again = list(play_again(replay, session(rolling)))
    assert all(np.array_equal(played.frame, frame) for played, frame in zip(again, frames, strict=True))
    for tick in (17, 9, 2, 20):
        assert np.array_equal(playing.seek(tick), frames[tick - 1]) and playing.snapshot() == states[tick - 1]

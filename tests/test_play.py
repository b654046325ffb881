"""The loop, actions files, replays and files of frames, without a window."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import subprocess
import sys
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

from runtime.actions_file import Line, parse_actions, read_actions
from runtime.backends.mock import MockBackend
from runtime.bindings import Controls
from runtime.clock import Clock
from runtime.errors import ActionsFileError, ReplayError, WorldloopError
from runtime.loop import Desk, Request, Status, beside, play, play_script
from runtime.presenters import Checksum, FramesFile, VideoFile
from runtime.replay import MAGIC, Recorder, agrees, open_replay, play_again, same_machine
from runtime.saves import Saves
from runtime.session import Session
from runtime.world import World

MANIFEST = World.open("mock").manifest


class Script:
    """A screen that asks and presses as it is told, tick by tick, and closes at the end."""

    def __init__(
        self,
        ticks: int,
        asks: dict[int, list[Request]],
        controls: Controls,
        keys: dict[int, list[tuple[str, str]]] | None = None,
    ):
        self.left, self.asks, self.controls, self.keys = ticks, asks, controls, keys or {}
        self.now, self.shown, self.statuses, self.notices = 0, [], [], []
        self.rewound = range(0)

    @property
    def rewinding(self) -> bool:
        return self.now in self.rewound

    @property
    def is_open(self) -> bool:
        return self.left > 0

    def requests(self) -> list[Request]:
        for what, key in self.keys.get(self.now, []):
            getattr(self.controls, what)(key, float(self.now))
        return self.asks.get(self.now, [])

    def show(self, frame: np.ndarray, status: Status) -> None:
        self.shown.append(frame)
        self.statuses.append(status)
        self.now += 1
        self.left -= 1

    def notify(self, text: str, picture: np.ndarray | None = None) -> None:
        self.notices.append(text)


def run(
    tmp_path: Path, ticks: int, asks: dict[int, list[Request]], keys=None, seed: int = 0, record: bool = False,
    rewound: range = range(0),
):  # fmt: skip
    session = Session(World.open("mock"), seed=seed, rewind_mb=16)
    controls = Controls(MANIFEST.actions)
    screen = Script(ticks, asks, controls, keys)
    screen.rewound = rewound
    time = itertools.count(step=0.001)
    desk = Desk(Recorder(tmp_path / "game.replay", session, "mock") if record else None, Saves(tmp_path / "saves"))
    report = play(session, controls, screen, Clock(60, lambda: next(time), lambda s: None), desk)
    if desk.recorder:
        desk.recorder.close()
    return session, screen, report


def test_every_pass_of_the_loop_is_one_tick(tmp_path):
    session, screen, report = run(tmp_path, 25, {})
    assert session.tick_number == len(screen.shown) == len(report.tick_s) == 25


def test_keys_reach_the_world(tmp_path):
    moved, _, _ = run(tmp_path, 60, {}, {0: [("press", "up")]})
    stood, _, _ = run(tmp_path, 60, {})
    assert moved._state["car"][0, 3] > 1 and stood._state["car"][0, 3] == 0


def test_pause_stops_the_world_and_step_moves_it_by_one(tmp_path):
    asks = {5: [Request("pause")], 8: [Request("step")], 12: [Request("pause")]}
    _, screen, _ = run(tmp_path, 15, asks)
    assert [status.tick for status in screen.statuses] == [1, 2, 3, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 8, 9]
    assert screen.statuses[6].paused and not screen.statuses[13].paused


def test_loading_brings_the_saved_moment_back(tmp_path):
    asks = {10: [Request("save")], 30: [Request("load")]}
    _, screen, _ = run(tmp_path, 50, asks, {0: [("press", "up")]})
    assert screen.notices == ["saved as 'quick' at tick 10", "loaded tick 10 of 'quick'"]
    assert all(np.array_equal(a, b) for a, b in zip(screen.shown[10:30], screen.shown[30:50], strict=True))


def test_what_cannot_be_done_is_said_and_the_game_goes_on(tmp_path):
    (tmp_path / "saves").mkdir()
    (tmp_path / "saves" / "quick.save").write_bytes(b"junk")
    session, screen, _ = run(tmp_path, 6, {1: [Request("load")], 3: [Request("prompt", "no colour here")]})
    assert session.tick_number == 6
    assert "not a saved game" in screen.notices[0] and "colours" in screen.notices[1]


def test_loading_before_saving_says_so(tmp_path):
    _, screen, _ = run(tmp_path, 3, {1: [Request("load")]})
    assert screen.notices == ["nothing saved yet: F5 saves"]


def test_games_are_saved_under_names_and_gone_through(tmp_path):
    asks = {
        5: [Request("save_as", "a")], 9: [Request("save_as", "b")], 12: [Request("save_as", "../c")],
        15: [Request("next_save")], 16: [Request("load")],
    }  # fmt: skip
    session, screen, _ = run(tmp_path, 20, asks)
    assert screen.notices[2].startswith("a save's name") and screen.notices[3].startswith("'a': tick 5")
    assert session.tick_number == 9


def test_holding_the_rewind_key_runs_the_film_backwards_and_letting_go_plays_on(tmp_path):
    _, screen, _ = run(tmp_path, 60, {}, {0: [("press", "up")]}, rewound=range(30, 50))
    ticks = [status.tick for status in screen.statuses]
    assert ticks == [*range(1, 31), *range(29, 9, -1), *range(11, 21)]
    for now, tick in enumerate(ticks):
        assert np.array_equal(screen.shown[now], screen.shown[tick - 1])


def test_branches_are_forked_and_gone_through(tmp_path):
    asks = {5: [Request("branch")], 20: [Request("fork")], 40: [Request("branch")]}
    session, screen, _ = run(tmp_path, 50, asks, rewound=range(10, 15))
    assert screen.notices[0].startswith("there is one branch only")
    assert screen.notices[1:] == ["branch 2 begins at tick 10; F4 goes to the others", "main, tick 10"]
    assert [status.branch for status in screen.statuses[38:42]] == ["branch 2"] * 2 + ["main"] * 2
    assert session.tick_number == 20


def test_a_replay_of_rewinding_and_branching_is_the_same_game(tmp_path):
    asks = {20: [Request("fork")], 40: [Request("branch")], 44: [Request("prompt", "red")]}
    keys = {0: [("press", "up")], 12: [("press", "a")], 33: [("release", "a")]}
    _, screen, _ = run(tmp_path, 70, asks, keys, record=True, rewound=range(15, 19))
    replay = open_replay(tmp_path / "game.replay")
    again = [played.frame for played in play_again(replay, Session(World.open("mock")))]
    shown = [frame for now, frame in enumerate(screen.shown) if now not in range(15, 19)]
    assert len(again) == len(shown) and all(np.array_equal(a, b) for a, b in zip(again, shown, strict=True))


def crash(folder: Path) -> None:
    """Play 600 ticks with autosaves, then die without a word."""
    session = Session(World.open("mock"), seed=8)
    desk = Desk(saves=Saves(folder))
    for _ in range(600):
        desk.record(session, session.tick({"gas", "left"}))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_after_a_crash_the_game_goes_on_and_the_replay_knows_from_where(tmp_path):
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; from test_play import Path, crash; crash(Path({str(tmp_path)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    whole = Session(World.open("mock"), seed=8)
    for _ in range(600):
        whole.tick({"gas", "left"})
    session = Session(World.open("mock"))
    desk = Desk(Recorder(tmp_path / "game.replay", session, "mock"), Saves(tmp_path))
    assert desk.resume(session) == "resumed at tick 600 after a crash; R begins again"
    assert session.snapshot() == whole.snapshot()
    desk.before_tick(session)
    frame = session.tick({"gas"})
    desk.record(session, frame)
    desk.recorder.close()
    played = list(play_again(open_replay(tmp_path / "game.replay"), Session(World.open("mock"))))
    assert len(played) == 1 and np.array_equal(played[0].frame, frame)
    assert desk.resume(session) is None


def test_every_frame_names_the_newest_input_that_it_answers(tmp_path):
    keys = {3: [("press", "up")], 5: [("release", "up"), ("press", "a")]}
    _, screen, _ = run(tmp_path, 8, {}, keys)
    assert [status.answered for status in screen.statuses] == [0, 0, 0, 1, 1, 3, 3, 3]


def test_time_that_stood_still_is_no_response(tmp_path):
    asks = {5: [Request("pause")], 95: [Request("pause")]}
    keys = {2: [("press", "up")], 30: [("release", "up")], 97: [("press", "a")]}
    _, screen, _ = run(tmp_path, 100, asks, keys)
    before, after, last = (screen.statuses[tick].response for tick in (4, 96, 99))
    assert before is not None and after == before and last != before


def test_restart_begins_the_same_game_again(tmp_path):
    _, screen, _ = run(tmp_path, 20, {10: [Request("restart")]})
    assert all(np.array_equal(a, b) for a, b in zip(screen.shown[:10], screen.shown[10:], strict=True))


def test_a_replay_of_saving_loading_prompts_and_restarts_is_the_same_game(tmp_path):
    asks = {
        8: [Request("save")],
        20: [Request("prompt", "red and white")],
        33: [Request("load")],
        50: [Request("restart")],
        60: [Request("pause")],
        63: [Request("step"), Request("pause")],
    }
    _, screen, _ = run(
        tmp_path, 100, asks, {0: [("press", "up")], 15: [("press", "a")], 40: [("release", "a")]}, seed=5, record=True
    )
    replay = open_replay(tmp_path / "game.replay")
    again = [played.frame for played in play_again(replay, Session(World.open("mock"), seed=5))]
    shown = [
        frame
        for frame, status, before in zip(screen.shown, screen.statuses, [None, *screen.statuses], strict=False)
        if before is None or status.tick != before.tick
    ]
    assert len(again) == replay.ticks == len(shown)
    assert all(np.array_equal(a, b) for a, b in zip(again, shown, strict=True))


def record_game(path: Path, ticks: int) -> None:
    session = Session(World.open("mock"), seed=1)
    recorder = Recorder(path, session, "mock")
    rng = random.Random(0)
    for _ in range(ticks):
        frame = session.tick({name for name in MANIFEST.action_names if rng.random() < 0.4})
        recorder.tick(session, frame)
    recorder.close()


def test_a_changed_frame_is_found_where_it_is(tmp_path):
    path = tmp_path / "a.replay"
    record_game(path, 100)
    replay = open_replay(path)
    bad = [[kind, number, mask ^ (4 if number == 50 else 0), check] for kind, number, mask, check in replay.records]
    session = Session(World.open("mock"), seed=1)
    assert same_machine(replay.header, session)
    differing = [
        played.index for played in play_again(replace(replay, records=bad), session) if not agrees(played, exact=True)
    ]
    assert differing[0] == 63  # the first checked tick after 50


def test_a_different_frame_is_far_away_from_another_machine_too(tmp_path):
    record_game(tmp_path / "a.replay", 32)
    played = list(play_again(open_replay(tmp_path / "a.replay"), Session(World.open("mock"), seed=1)))
    assert all(agrees(p, exact=False) for p in played)
    assert not agrees(replace(played[15], frame=255 - played[15].frame), exact=False)


def test_a_replay_of_another_gpu_is_of_another_machine(tmp_path, monkeypatch):
    session = Session(World.open("mock"), backend=MockBackend(name="onnxruntime-cuda"))
    monkeypatch.setattr("runtime.replay.gpu_name", lambda: "H200")
    Recorder(tmp_path / "game.replay", session, "mock").close()
    header = open_replay(tmp_path / "game.replay").header
    assert header.device == "H200" and same_machine(header, session)
    monkeypatch.setattr("runtime.replay.gpu_name", lambda: "A10")
    assert not same_machine(header, session)


@pytest.mark.parametrize("cut", [1, 5, 9, 30])
def test_a_torn_tail_is_cut_away_and_the_rest_plays(tmp_path, cut):
    path = tmp_path / "a.replay"
    record_game(path, 40)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    replay = open_replay(path)
    assert 0 < replay.repaired_tail_bytes < 300 and 38 <= replay.ticks < 40
    assert open_replay(path).repaired_tail_bytes == 0  # repaired for good


def test_damage_in_the_middle_is_an_error_not_a_tail(tmp_path):
    path = tmp_path / "a.replay"
    record_game(path, 40)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReplayError, match=r"damaged|makes no sense"):
        open_replay(path)


def test_replays_with_random_damage_are_refused_or_play(tmp_path):
    path, hurt, rng = tmp_path / "a.replay", tmp_path / "b.replay", random.Random(2)
    record_game(path, 20)
    whole = path.read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        hurt.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            open_replay(hurt)
        except WorldloopError:
            continue


@pytest.mark.parametrize("field, value", [("tick_hz", math.inf), ("tick_hz", math.nan), ("tick_hz", 0), ("threads", 0)])
def test_a_header_that_makes_no_sense_is_refused(tmp_path, field, value):
    record_game(tmp_path / "a.replay", 1)
    path, header = tmp_path / "b.replay", asdict(open_replay(tmp_path / "a.replay").header)
    payload = msgpack.packb(header | {field: value})
    path.write_bytes(MAGIC + len(payload).to_bytes(4, "little") + zlib.crc32(payload).to_bytes(4, "little") + payload)
    with pytest.raises(ReplayError, match=field):
        open_replay(path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_recording_opens(tmp_path):
    path = tmp_path / "killed.replay"
    program = (
        f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; import test_play; "
        f"test_play.record_game(Path({str(path)!r}), 10**9)"
    )
    child = subprocess.Popen([sys.executable, "-c", program])
    try:
        while not path.exists() or path.stat().st_size < 5000:
            assert child.poll() is None
            os.sched_yield()
    finally:
        child.kill()
        child.wait()
    assert open_replay(path).ticks > 50


def test_a_replay_of_another_world_is_refused(tmp_path, tiny_file):
    record_game(tmp_path / "a.replay", 5)
    with pytest.raises(ReplayError, match="another version"):
        list(
            play_again(
                open_replay(tmp_path / "a.replay"), Session(World.open(tiny_file), backend="onnxruntime", threads=1)
            )
        )


def test_an_actions_file_is_read_as_cli_md_says():
    text = "# a comment is no tick\ngas\n\n@prompt a red road\nleft gas # both\r\nright\n"
    lines = parse_actions(text, MANIFEST, "x")
    assert lines == [
        Line(frozenset({"gas"})),
        Line(),
        Line(frozenset({"left", "gas"}), "a red road"),
        Line(frozenset({"right"})),
    ]


@pytest.mark.parametrize("text, ticks", [("", 0), ("\n", 1), ("\n\n", 2), ("gas", 1), ("gas\n", 1), ("# only\n", 0)])
def test_lines_are_ticks(text, ticks):
    assert len(parse_actions(text, MANIFEST, "x")) == ticks


@pytest.mark.parametrize(
    "text, said",
    [
        ("gas\nfly\n", "x:2: no action 'fly'.*left, right, gas, brake"),
        ("@prompt\ngas\n", "x:1: @prompt needs a text"),
        ("@jump now\ngas\n", "x:1: '@jump'"), ("gas\n@prompt red\n", "last @prompt has no tick"),
        ("@prompt " + "x" * 5000 + "\n\n", "4096"),
    ],
)  # fmt: skip
def test_a_senseless_line_is_named(text, said):
    with pytest.raises(ActionsFileError, match=said):
        parse_actions(text, MANIFEST, "x")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00gas", b"gas\x80", bytes(range(256))])
def test_an_actions_file_of_bytes_is_refused(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ActionsFileError):
        read_actions(tmp_path / "a.txt", MANIFEST)


def test_after_the_script_nothing_is_pressed():
    session = Session(World.open("mock"))
    report = play_script(session, [Line(frozenset({"gas"}))], 5, Desk())
    assert session.tick_number == 5 and session.last_action == frozenset() and len(report.tick_s) == 5


def test_headless_ticks_longer_than_a_period_are_late():
    times = iter([0.0, 0.001, 1.0, 1.1, 2.0, 2.001])
    report = play_script(Session(World.open("mock")), [], 3, Desk(), now=lambda: next(times))
    assert report.late_ticks == 1


def test_the_frames_file_holds_exactly_the_frames(tmp_path):
    session, frames = Session(World.open("mock")), []

    class Keep:
        def show(self, frame: np.ndarray) -> None:
            frames.append(frame)

    with FramesFile(tmp_path / "f.npz", 20, (64, 96, 3)) as file:
        play_script(session, [Line(frozenset({"gas"}))] * 20, 20, Desk(), [file, Keep()])
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["frames"].shape == (20, 64, 96, 3) and np.array_equal(stored["frames"], np.stack(frames))


def test_the_frames_file_of_no_ticks_is_empty_and_readable(tmp_path):
    with FramesFile(tmp_path / "f.npz", 0, (4, 6, 3)):
        pass
    with np.load(tmp_path / "f.npz") as stored:
        assert stored["frames"].shape == (0, 4, 6, 3)


def test_the_checksum_is_that_of_all_bytes():
    import zlib

    one, frames = Checksum(), [np.full((2, 2, 3), i, np.uint8) for i in range(3)]
    for frame in frames:
        one.show(frame)
    assert one.value == zlib.crc32(b"".join(frame.tobytes() for frame in frames))


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_shows_every_tick_at_the_worlds_rate(tmp_path, suffix):
    import av

    session = Session(World.open("mock"))
    with VideoFile(tmp_path / f"v{suffix}", 25) as video:
        for _ in range(30):
            video.show(session.tick({"gas"}))
    with av.open(str(tmp_path / f"v{suffix}")) as file:
        decoded = list(file.decode(video=0))
    pictures = [picture.to_ndarray(format="rgb24") for picture in decoded]
    assert float((decoded[-1].pts - decoded[0].pts) * decoded[0].time_base) == pytest.approx(29 / 25, abs=0.01)
    assert len(pictures) == 30
    frame = Session(World.open("mock")).tick({"gas"})
    times = pictures[0].shape[0] // 64
    small = pictures[0][times // 2 :: times, times // 2 :: times].astype(int)
    assert np.abs(small - frame).mean() < 12


def test_two_pictures_stand_side_by_side_at_one_height():
    left, right = np.zeros((64, 96, 3), np.uint8), np.full((128, 128, 3), 9, np.uint8)
    both = beside(left, right)
    assert both.shape == (64, 160, 3) and both[:, :96].max() == 0 and both[:, 96:].min() == 9

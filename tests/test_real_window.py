"""A person's game: a real window, real keys, and on the screen the frames that the session made."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from real_window import MISSING, RealWindow, records_so_far
from tiny_world import HEIGHT, write_tiny

from runtime.replay import Recorder, open_replay, play_again
from runtime.saves import thumbnail, unpack_slot
from runtime.session import Session
from runtime.world import World

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}")

TIMES = 6  # a mock frame of 96 × 64 in the first window
SCREEN = 96 * TIMES, 64 * TIMES  # so that the window is the screen
LEFT, RIGHT, GAS = 1, 2, 4  # bits of a replay


def picture(screenshot: np.ndarray) -> np.ndarray:
    """The frame in the window, made small again. Every pixel of it must be a whole square."""
    small = screenshot[::TIMES, ::TIMES]
    assert np.array_equal(small.repeat(TIMES, axis=0).repeat(TIMES, axis=1), screenshot)
    return small


class Game:
    """The game in the window, known by what it writes into its replay."""

    def __init__(self, window: RealWindow, replay: Path) -> None:
        self.window, self.replay = window, replay

    def ticks(self) -> list[list]:
        return [record for record in records_so_far(self.replay) if record[0] == "tick"]

    def until(self, what: str, kind: str, count: int = 1) -> None:
        self.window.wait(what, lambda: sum(r[0] == kind for r in records_so_far(self.replay)) >= count)

    def until_pressed(self, mask: int, ticks: int = 1) -> None:
        """Until the newest ticks were made with exactly these actions."""
        self.window.wait(f"actions {mask}", lambda: [r[2] for r in self.ticks()[-ticks:]] == [mask] * ticks)

    def play_on(self, ticks: int) -> None:
        goal = len(self.ticks()) + ticks
        self.window.wait(f"tick {goal}", lambda: len(self.ticks()) >= goal)


def test_a_person_walks_turns_taps_prompts_saves_rewinds_and_loads(tmp_path):
    replay, shots = tmp_path / "game.replay", []
    with RealWindow(tmp_path, "play", "mock", "--seed", "7", "--record", replay, "--json", size=SCREEN) as window:
        game = Game(window, replay)
        game.until_pressed(0, ticks=3)
        window.do("keydown", "w")  # walk
        game.until_pressed(GAS, ticks=60)
        shots.append(window.screenshot())
        window.do("keydown", "Left")  # turn
        game.until_pressed(GAS | LEFT, ticks=30)
        shots.append(window.screenshot())
        window.do("keyup", "Left")
        game.until_pressed(GAS, ticks=2)
        quiet = len(game.ticks())
        window.do("key", "--delay", "0", "d")  # a tap, much shorter than a tick
        window.wait("the tap", lambda: any(record[2] & RIGHT for record in game.ticks()[quiet:]))
        window.do("keyup", "w")
        window.do("key", "Tab")
        window.do("type", "a red road in white snow")
        window.do("key", "Return")
        game.until("the prompt", "prompt")
        window.do("keydown", "w")
        game.until_pressed(GAS, ticks=30)
        shots.append(window.screenshot())

        window.do("key", "F5")
        folder = tmp_path / "data" / "worldloop" / "saves"
        saved = window.wait("the save", lambda: list(folder.glob("*/quick.save")))[0]
        game.play_on(150)  # the notice has gone by then
        shots.append(window.screenshot())
        window.do("keydown", "BackSpace")  # the film runs backwards
        backwards: list[bytes] = []

        def seen() -> bool:
            now = window.screenshot().tobytes()
            backwards.extend([now] if now not in backwards[-1:] else [])
            return len(backwards) > 10

        window.wait("the rewind", seen)
        window.do("keyup", "BackSpace")
        game.until("playing on", "restore")
        game.play_on(20)
        shots.append(window.screenshot())
        window.do("key", "F9")
        game.until("the load", "restore", count=2)
        game.play_on(100)
        shots.append(window.screenshot())
        window.do("keyup", "w")
        window.do("key", "Escape")
        code, out, err = window.finished()
    assert code == 0, err

    recorded = open_replay(replay)
    frames = [played.frame for played in play_again(recorded, Session(World.open("mock"), seed=7))]
    report, crc = json.loads(out), 0
    for frame in frames:
        crc = zlib.crc32(frame.tobytes(), crc)
    assert report["ticks"] == len(frames) and report["frames_crc32"] == f"{crc:08x}"

    kinds = [record[0] for record in recorded.records]
    went_back, loaded = (at for at, kind in enumerate(kinds) if kind == "restore")
    assert recorded.records[kinds.index("prompt")][1] == "a red road in white snow"
    slot = unpack_slot(saved.read_bytes(), str(saved))
    assert recorded.records[loaded][1] == slot.snapshot
    first, second = (kinds[:at].count("tick") for at in (went_back, loaded))  # frames before each
    assert any(np.array_equal(slot.thumbnail, thumbnail(frame)) for frame in frames[:first])

    spans = [range(first)] * 4 + [range(first, second), range(second, len(frames))]
    shown = -1
    for shot, span in zip(shots, spans, strict=True):  # each later than the one before: the mock's pictures come again
        shown = where(picture(shot), frames, range(max(span.start, shown + 1), span.stop))
    film = [np.frombuffer(shot, np.uint8).reshape(shots[0].shape) for shot in backwards[1:]]
    rewound = [first]
    for shot in film:  # the latest earlier tick that looked so: the mock's pictures come again
        rewound.append(where(picture(shot), frames, range(rewound[-1] - 1, -1, -1)))
    assert len(rewound) > 10


def where(shown: np.ndarray, frames: list[np.ndarray], span: range) -> int:
    """Which of the session's frames is on the screen."""
    return next(tick for tick in span if np.array_equal(frames[tick], shown))


def test_a_replay_is_watched_paused_sought_stepped_and_run_fast_to_its_end_in_a_window(tmp_path):
    """At 5 ticks a second and paused, so that it does not matter how late keys come on a busy machine."""
    world, path = write_tiny(tmp_path / "slow.world", tick_hz=5), tmp_path / "game.replay"
    session, ticks = Session(World.open(world), backend="onnxruntime", threads=1), {}
    recorder = Recorder(path, session, str(world))
    for tick in range(1, 1001):
        frame = session.tick({"gas"})
        recorder.tick(session, frame)
        ticks[frame[0, :, 0].tobytes()] = tick  # all rows of a frame are alike
    recorder.close()
    assert len(ticks) == 1000

    cell = 640 // HEIGHT
    with RealWindow(tmp_path, "replay", path, "--from", "30", "--json", size=(4 * cell, 8 * cell)) as window:

        def shown() -> int:
            """The tick on the screen, 0 for none. Texts are above and below the middle."""
            return ticks.get(window.screenshot()[4 * cell, cell // 2 :: cell, 0].tobytes(), 0)

        window.wait("the beginning", lambda: shown() > 30)
        window.do("key", "p")
        window.wait("the pause", lambda: (window.screenshot()[:30] == 255).all(-1).any())  # letters
        here = shown()
        for key, tick in (("Right", here + 25), ("Left", here), ("period", here + 1)):  # 5 s on and back, a step
            window.do("key", key)
            window.wait(f"{key} to {tick}", lambda tick=tick: shown() == tick)
        for _ in range(6):  # 64 times the rate: what is left would take three minutes
            before = window.screenshot()
            window.do("key", "Up")
            window.wait("the speed", lambda before=before: not np.array_equal(window.screenshot(), before))
        window.do("key", "p")
        code, out, err = window.finished()
    assert code == 0, err
    assert json.loads(out)["first_difference"] is None

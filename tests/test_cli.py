"""The command line as scripts see it: JSON on stdout, one line on stderr when something is wrong, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_world import rezip

from runtime.cli import COMMANDS, EXTRAS, main

ROOT = Path(__file__).parent.parent
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")


def worldloop(*words: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from runtime.cli import main; main()"
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    }
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        env={**hidden, **environment},
        timeout=120,
    )


def call(capsys: pytest.CaptureFixture, *words: str | Path) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_headless_play_reports_what_cli_md_promises_and_imports_no_torch(tiny_file):
    done = worldloop("play", tiny_file, "--headless", "--ticks", "30", "--seed", "7", "--threads", "1", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert (report["world"], report["seed"], report["ticks"], report["torch_imported"]) == ("tiny", 7, 30, False)
    assert report["backend"] in ("openvino", "onnxruntime") and report["precision"] in ("bf16", "fp32")
    assert set(report["tick_ms"]) == {"p50", "p95", "p99", "max"} and report["late_ticks"] >= 0
    assert re.fullmatch(r"[0-9a-f]{8}", report["frames_crc32"]) and re.fullmatch(r"[0-9a-f]{64}", report["world_hash"])


def test_two_processes_play_the_same_game(tiny_file, tmp_path):
    (tmp_path / "a.txt").write_text("gas\ngas left\n@prompt very bright\n\nright\n" * 10)
    words = ("play", tiny_file, "--headless", "--actions", tmp_path / "a.txt", "--json")
    first, second = (json.loads(worldloop(*words).stdout) for _ in range(2))
    assert first["ticks"] == 40 and first["frames_crc32"] == second["frames_crc32"]


def test_everything_that_play_writes_agrees(tmp_path, capsys):
    video, frames, replay = tmp_path / "v.mp4", tmp_path / "f.npz", tmp_path / "r.replay"
    outputs = ("--video", video, "--frames", frames, "--record", replay)
    code, out, _ = call(capsys, "play", "mock", "--headless", "--ticks", 40, *outputs, "--json")
    report = json.loads(out)
    with np.load(frames) as stored:
        import zlib

        assert f"{zlib.crc32(stored['frames'].tobytes()):08x}" == report["frames_crc32"]
    assert code == 0 and video.stat().st_size > 1000
    code, out, _ = call(capsys, "replay", replay, "--verify", "--video", tmp_path / "again.mp4", "--json")
    assert code == 0
    expected = {"ticks": 40, "verified": True, "first_difference": None, "repaired_tail_bytes": 0}
    assert json.loads(out).items() >= expected.items()
    assert (tmp_path / "again.mp4").stat().st_size == video.stat().st_size


def test_a_torn_replay_is_repaired_with_a_notice(tmp_path, capsys):
    replay = tmp_path / "r.replay"
    call(capsys, "play", "mock", "--headless", "--ticks", 40, "--record", replay)
    replay.write_bytes(replay.read_bytes()[:-3])
    code, out, err = call(capsys, "replay", replay, "--verify", "--json")
    assert code == 0 and json.loads(out)["repaired_tail_bytes"] > 0 and "unfinished record" in err


def test_a_replay_that_differs_fails_with_exit_code_1(tmp_path, capsys, monkeypatch):
    replay = tmp_path / "r.replay"
    call(capsys, "play", "mock", "--headless", "--ticks", 40, "--record", replay)
    monkeypatch.setattr("runtime.backends.mock.COLOURS", {"grey": (0, 0, 0), "green": (255, 0, 0)})
    code, out, err = call(capsys, "replay", replay, "--verify", "--json")
    assert code == 1 and json.loads(out)["first_difference"] == 15 and "tick 15" in err and err.count("\n") == 1


def bad_words(tmp_path: Path, tiny_file: Path) -> dict[str, tuple[list, str]]:
    (tmp_path / "cut.world").write_bytes(tiny_file.read_bytes()[:-50])
    (tmp_path / "empty.world").write_bytes(b"")
    (tmp_path / "old.world").write_bytes(b"")
    rezip(tiny_file, tmp_path / "old.world", {"manifest.json": b'{"format": 99}'})
    rezip(tiny_file, tmp_path / "hurt.world", {"tick.onnx": b"x" * 10})
    (tmp_path / "fly.txt").write_text("gas\nfly\n")
    (tmp_path / "junk.txt").write_bytes(bytes(range(256)))
    (tmp_path / "junk.replay").write_bytes(b"junk")
    one = ["--headless", "--ticks", "1"]
    return {
        "no such world": (["play", "nowhere", *one], "shipped are"),
        "no such file": (["play", "no/such.world", *one], "no world file"),
        "truncated": (["play", tmp_path / "cut.world", *one], "cut off"),
        "empty": (["play", tmp_path / "empty.world", *one], "cut off"),
        "newer": (["play", tmp_path / "old.world", *one], "update worldloop"),
        "damaged": (["play", tmp_path / "hurt.world", *one], "get the world file again"),
        "unknown action": (["play", "mock", "--headless", "--actions", tmp_path / "fly.txt"], "left, right, gas"),
        "actions of junk": (["play", "mock", "--headless", "--actions", tmp_path / "junk.txt"], "not text"),
        "no actions file": (["play", "mock", "--headless", "--actions", tmp_path / "none.txt"], "cannot be read"),
        "no display": (["play", "mock"], "--headless"),
        "headless for how long": (["play", "mock", "--headless"], "--ticks"),
        "ticks in a window": (["play", "mock", "--ticks", "5"], "--headless"),
        "negative ticks": (["play", "mock", "--headless", "--ticks", "-5"], "--ticks"),
        "no number": (["play", "mock", "--headless", "--ticks", "many"], "--ticks"),
        "unknown option": (["play", "mock", "--fast"], "--fast"),
        "unknown command": (["paly"], "did you mean 'play'"),
        "unknown backend": (["play", tiny_file, *one, "--backend", "tpu"], "openvino, onnxruntime"),
        "unknown precision": (["play", tiny_file, *one, "--precision", "int3"], "it has"),
        "unknown start": (["play", tiny_file, *one, "--start", "moon"], "zero, far"),
        "unusable prompt": (["play", "mock", *one, "--prompt", "nothing"], "colours"),
        "nowhere to write frames": (["play", "mock", *one, "--frames", tmp_path / "no" / "f.npz"], "No such file"),
        "nowhere to write video": (["play", "mock", *one, "--video", tmp_path / "no" / "f.mp4"], "No such file"),
        "nowhere to write a replay": (["play", "mock", *one, "--record", tmp_path / "no" / "f.replay"], "No such file"),
        "unknown kind of video": (["play", "mock", *one, "--video", tmp_path / "f.docx"], ".mp4"),
        "nothing to compare with": (["play", "mock", *one, "--compare"], "names no real environment"),
        "no replay": (["replay", tmp_path / "none.replay"], "cannot be read"),
        "replay of junk": (["replay", tmp_path / "junk.replay"], "not a replay"),
        "bench of nothing": (["bench", "nowhere"], "shipped are"),
        "bench with unknown backends": (["bench", "mock", "--backends", "tpu", "--ticks", "1"], "no backend"),
    }  # fmt: skip


def test_bad_input_is_one_line_that_names_the_fix_and_exit_code_2(tmp_path, tiny_file, capsys, monkeypatch):
    for name in DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    for case, (words, fix) in bad_words(tmp_path, tiny_file).items():
        code, out, err = call(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), f"{case}: {code} {out} {err}"
        assert err.startswith("worldloop: ") and fix in err, f"{case}: {err}"


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "runtime.cli.eval", None)
    monkeypatch.setitem(EXTRAS, "runtime", "train")
    code, _, err = call(capsys, "eval", "mock")
    assert code == 2 and "pip install 'worldloop[train]'" in err


def test_help_lists_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(f"  {name} " in out for name in COMMANDS)
    code, out, _ = call(capsys, "play", "--help")
    assert code == 0 and "--headless" in out


def test_list_describes_worlds_and_backends(capsys):
    code, out, _ = call(capsys, "list", "--json")
    report = json.loads(out)
    mock = next(world for world in report["worlds"] if world["name"] == "mock")
    assert code == 0 and (mock["tick_hz"], mock["width"], mock["height"]) == (60, 96, 64)
    assert mock["actions"] == ["left", "right", "gas", "brake"] and mock["prompts"]
    assert {backend["name"] for backend in report["backends"]} >= {"onnxruntime", "openvino", "mock"}
    assert call(capsys, "list")[0] == 0


def test_bench_reports_what_cli_md_promises(tiny_file):
    words = ("--ticks", "20", "--backends", "all", "--busy", "1", "--threads", "1", "--json")
    done = worldloop("bench", tiny_file, *words)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["threads"] == 1 and report["machine"]["cores"] >= 1
    assert [result["backend"] for result in report["results"]] == ["openvino", "onnxruntime"]
    for result in report["results"]:
        assert result["tick_ms"].keys() == {"p50", "p95", "p99"} and result["players"] == 1
        assert result["ticks_per_s"] > 0 and result["first_frame_s"] > 0 and result["peak_mb"] > 10
        assert result["cold_start_s"] is None or result["cold_start_s"] > result["first_frame_s"]
        assert result["busy"]["programs"] == 1 and result["busy"]["tick_ms"].keys() == {"p50", "p95", "p99"}
        assert result["flops_per_tick"] == 1000 and 0 <= result["peak_share"] < 1


def test_busy_programs_end_with_a_bench_that_is_killed():
    code = """
from runtime.cli.bench import busy_programs
import time
with busy_programs(2):
    print("busy", flush=True)
    time.sleep(60)
"""
    # The programs inherit this end of the pipe: it closes with the last of them.
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as bench:
        assert bench.stdout.readline() == b"busy\n"
        bench.kill()
        assert bench.stdout.read() == b""


def test_bench_takes_several_players(tiny_file, capsys, monkeypatch):
    monkeypatch.setattr("runtime.matmul_peak.SIDES", (32,))
    code, out, _ = call(
        capsys, "bench", tiny_file, "--ticks", 5, "--players", 3, "--backend", "onnxruntime", "--threads", 1, "--json"
    )
    (result,) = json.loads(out)["results"]
    assert code == 0 and result["players"] == 3
    together, alone = result["ticks_per_s"], 1000 / result["alone"]["tick_ms"]["p50"]
    assert result["alone"]["gain"] == pytest.approx(together / alone, rel=0.1)

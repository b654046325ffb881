"""`worldloop record` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("h5py")

from runtime.cli import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["record", *arguments])
    return int(left.value.code or 0)


def test_record_then_resume_then_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "data")
    asked = ["CarRacing-v3", "--out", out, "--size", "32", "--workers", "1"]
    assert run(*asked, "--frames", "150", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["out"] == out and report["step"] == report["recorded_now"] == 150 and report["seconds"] > 0
    assert run(*asked, "--frames", "150", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["recorded_now"] == 0
    assert run(*asked, "--frames", "150") == 2
    assert "--resume" in capsys.readouterr().err
    assert run("--show", out, str(tmp_path / "sheet.png")) == 0
    assert (tmp_path / "sheet.png").exists()


def test_any_gymnasium_environment_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("CartPole-v1", "--out", str(tmp_path / "data"), "--frames", "60", "--size", "32", "--workers", "1")
    assert run(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 60 and set(report["key_share"]) == {"action_0", "action_1"}


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["CarRacing-v3", "--frames", "10"], "--out"),
        (["CarRacing-v3", "--out", "OUT"], "--frames"),
        (["CarRacing-v3", "--out", "OUT", "--frames", "9", "--episodes", "9"], "--episodes"),
        (["CarRacing-v3", "--out", "OUT", "--frames", "9", "--split", "both"], "train, test"),
        (["NoSuchGame-v7", "--out", "OUT", "--frames", "9"], "NoSuchGame-v7"),
        (["--show", "OUT", "sheet.png"], "dataset.json"),
        (["--show", "OUT"], "sheet.png"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    assert run(*(argument.replace("OUT", str(tmp_path / "out")) for argument in arguments)) == 2
    said = capsys.readouterr().err.strip()
    assert hint in said and len(said.splitlines()) == 1

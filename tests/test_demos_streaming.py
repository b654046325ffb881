"""The demos of the streaming core run without a screen and write a video."""

import runpy
import sys

import pytest


@pytest.mark.parametrize(
    "module, options", [("demos.three_sinks", ["--blocks", "4"]), ("demos.prompt_switching", ["mock", "--ticks", "80"])]
)
def test_a_demo_writes_its_video(tmp_path, monkeypatch, module, options):
    video = tmp_path / "seen.mp4"
    monkeypatch.setattr(sys, "argv", [module, *options, "--headless", "--video", str(video)])
    runpy.run_module(module, run_name="__main__")
    assert video.read_bytes()[4:8] == b"ftyp"

"""What the README and the smallest demo promise works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = blocks("python")
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


def test_ci_runs_the_readmes_test_command():
    commands = [line for block in blocks("sh") for line in block.splitlines() if "pytest" in line]
    assert commands and all(command in (ROOT / ".ci" / "run").read_text().splitlines() for command in commands)


def test_the_embedding_demo_draws_what_it_played(tmp_path):
    program = [sys.executable, "-m", "demos.embed", "mock", str(tmp_path / "seen.png")]
    subprocess.run(program, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
    assert (tmp_path / "seen.png").read_bytes()[1:4] == b"PNG"

"""What several tests of the player share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_world import write_tiny


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world file with real graphs."""
    return write_tiny(tmp_path_factory.mktemp("worlds") / "tiny.world")

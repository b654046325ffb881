"""The root of all errors that worldloop raises on purpose, and the branch of the maths. Imports nothing.

    WorldloopError               one line: where, what was found, how to fix it
    ├── SpecError                a world's description contradicts itself
    ├── DatasetError             a recording is missing, damaged, or does not fit
    ├── CheckpointError          training weights are missing, damaged, or do not fit
    ├── MissingExtraError        an optional package is needed and not installed
    ├── CheckFailed              the work was done and the answer is no (exit code 1)
    └── …                        runtime/errors.py goes on from here
"""

from __future__ import annotations


class WorldloopError(Exception):
    """Bad input or wrong use. The message is one line that a person can act on."""

    exit_code = 2


class SpecError(WorldloopError):
    """A world's description contradicts itself."""


class DatasetError(WorldloopError):
    """A recording is missing, damaged, or does not fit what asks for it."""


class CheckpointError(WorldloopError):
    """Training weights are missing, damaged, or do not fit what asks for them."""


class MissingExtraError(WorldloopError):
    """An optional package is needed and not installed."""


class CheckFailed(WorldloopError):
    """The check ran to its end and failed; the report says what."""

    exit_code = 1

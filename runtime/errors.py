"""The errors of playing, a tree on top of worldmodel/errors.py.

WorldloopError
├── WorldFileError           a world file is missing, truncated, corrupt, hostile or of another version
├── BackendError             the backend is unknown, not installed, or cannot run this world
├── ActionError              an action or key has a name that the world does not know
├── ActionsFileError         a line of an actions file makes no sense
├── BindingsError            a bindings file makes no sense
├── PromptError              a prompt that cannot be used
├── SnapshotError            a snapshot is damaged or belongs to another world
├── ReplayError              a replay is damaged or belongs to another world
├── DisplayError             no window can be opened
└── UsageError               options that contradict each other, or a value out of range
"""

from __future__ import annotations

from worldmodel.errors import CheckFailed, MissingExtraError, WorldloopError

__all__ = [
    "ActionError",
    "ActionsFileError",
    "BackendError",
    "BindingsError",
    "CheckFailed",
    "DisplayError",
    "MissingExtraError",
    "PromptError",
    "ReplayError",
    "SnapshotError",
    "UsageError",
    "WorldFileError",
    "WorldloopError",
]


class WorldFileError(WorldloopError):
    """A world file is missing, truncated, corrupt, hostile or of another version."""


class BackendError(WorldloopError):
    """The backend is unknown, not installed, or cannot run this world."""


class ActionError(WorldloopError):
    """An action or key has a name that the world does not know."""


class ActionsFileError(WorldloopError):
    """A line of an actions file makes no sense."""


class BindingsError(WorldloopError):
    """A bindings file makes no sense."""


class PromptError(WorldloopError):
    """A prompt that cannot be used."""


class SnapshotError(WorldloopError):
    """A snapshot is damaged or belongs to another world. The session stays as it was."""


class ReplayError(WorldloopError):
    """A replay is damaged or belongs to another world."""


class DisplayError(WorldloopError):
    """No window can be opened."""


class UsageError(WorldloopError):
    """Options that contradict each other, or a value out of range."""

"""The public face for programs that host a world. Re-exports, nothing else."""

from runtime.errors import WorldloopError
from runtime.session import Session
from runtime.world import World

__all__ = ["Session", "World", "WorldloopError"]

"""The public face for programs that host a world. Re-exports, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import WorldloopError
from runtime.frames import as_dlpack, as_surface
from runtime.session import Session
from runtime.worker import Finished
from runtime.world import World

if TYPE_CHECKING:
    from runtime.env import WorldEnv, WorldVectorEnv

__all__ = ["Finished", "Session", "World", "WorldEnv", "WorldVectorEnv", "WorldloopError", "as_dlpack", "as_surface"]


def __getattr__(name: str) -> Any:
    """The environments need gymnasium, so they are imported when they are asked for."""
    if name in ("WorldEnv", "WorldVectorEnv"):
        from runtime import env

        return getattr(env, name)
    raise AttributeError(f"module 'worldloop' has no attribute {name!r}")

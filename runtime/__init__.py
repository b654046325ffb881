"""Play worlds: time, input, sessions, windows. Knows a world only by its interface and its file; needs no torch."""

from runtime.session import Session
from runtime.world import World

__all__ = ["Session", "World"]

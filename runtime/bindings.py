"""Keys → actions. Events come when they come; a tick reads what was pressed at any moment since the last one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.manifest import Action


@dataclass(frozen=True)
class Reading:
    """What the player asks for in one tick. arrived: when its newest event came, None if nothing has changed."""

    actions: frozenset[str]
    arrived: float | None


class Controls:
    """The held set. Keys by their pygame names, lower case; several may mean one action, one several actions."""

    def __init__(self, actions: Iterable[Action]) -> None:
        self.meaning: dict[str, frozenset[str]] = {}
        for action in actions:
            for key in action.keys:
                self.meaning[key] = self.meaning.get(key, frozenset()) | {action.name}
        self._held: set[str] = set()
        self._tapped: set[str] = set()  # pressed since the last reading, perhaps released again
        self._arrived: float | None = None

    def press(self, key: str, at: float) -> None:
        """at: when, on the clock of the caller."""
        if key in self.meaning:
            self._held.add(key)
            self._tapped.add(key)
            self._arrived = at

    def release(self, key: str, at: float) -> None:
        if key in self._held:
            self._held.discard(key)
            self._arrived = at

    def release_all(self) -> None:
        """For when key releases go elsewhere: the window has lost the keyboard."""
        self._held.clear()
        self._tapped.clear()

    def read(self) -> Reading:
        """What is held now or was pressed since the last reading, however short the tap."""
        keys = self._held | self._tapped
        reading = Reading(frozenset().union(*(self.meaning[key] for key in keys)), self._arrived)
        self._tapped.clear()
        self._arrived = None
        return reading

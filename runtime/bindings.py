"""Keys → actions. Events come when they come; a tick reads what was pressed at any moment since the last one.

A key is a name: a key of the keyboard by its pygame name, lower case (`left`, `a`, `space`), a button or direction of a
gamepad (`pad:a`, `pad:left`), or one of the mouse (`mouse:left`, `mouse:move right`, `mouse:wheel up`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.manifest import Action

BESIDE = {  # default keys of worlds that name only keyboard keys: the same place on a gamepad and on the mouse
    "left": ("pad:left",), "right": ("pad:right",), "up": ("pad:up", "pad:a"), "down": ("pad:down", "pad:b"),
    "space": ("pad:x", "mouse:left"), "return": ("pad:y", "mouse:right"),
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What the player asks for in one tick.

    arrived: when its newest event came, None if nothing has changed. newest: the id of the newest event so far; a frame
    made from this reading answers all events up to that one. 0: there was none.
    """

    actions: frozenset[str]
    arrived: float | None
    newest: int


class Controls:
    """The held set. Several keys may mean one action, one several actions.

    keys: for every action the keys that press it. Every press and release that means something gets the next id.
    """

    def __init__(self, actions: Iterable[Action]) -> None:
        self._held: set[str] = set()
        self._tapped: set[str] = set()  # pressed since the last reading, perhaps released again
        self._arrived: float | None = None
        self._newest = 0
        self.bind({action.name: default_keys(action) for action in actions})

    def bind(self, keys: dict[str, tuple[str, ...]]) -> None:
        """Use these keys from now on."""
        self.keys = keys
        self.meaning: dict[str, frozenset[str]] = {}
        for action, names in keys.items():
            for key in names:
                self.meaning[key] = self.meaning.get(key, frozenset()) | {action}
        self.release_all()

    def press(self, key: str, at: float) -> None:
        """at: when, on the clock of the caller."""
        if key in self.meaning:
            self._held.add(key)
            self._tapped.add(key)
            self._note(at)

    def release(self, key: str, at: float) -> None:
        if key in self._held:
            self._held.discard(key)
            self._note(at)

    def tap(self, key: str, at: float) -> None:
        """Pressed and released at once: a turn of the mouse wheel, a move of the mouse."""
        self.press(key, at)
        self.release(key, at)

    def release_all(self) -> None:
        """For when key releases go elsewhere: the window has lost the keyboard."""
        self._held.clear()
        self._tapped.clear()

    def read(self) -> Reading:
        """What is held now or was pressed since the last reading, however short the tap."""
        keys = self._held | self._tapped
        reading = Reading(frozenset().union(*(self.meaning[key] for key in keys)), self._arrived, self._newest)
        self._tapped.clear()
        self._arrived = None
        return reading

    def _note(self, at: float) -> None:
        self._newest += 1
        self._arrived = at


def default_keys(action: Action) -> tuple[str, ...]:
    """The world's own keys for an action, and what lies beside them on a gamepad and a mouse."""
    if any(":" in key for key in action.keys):
        return action.keys
    return (*action.keys, *(other for key in action.keys for other in BESIDE.get(key, ())))

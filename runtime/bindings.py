"""Keys → actions. Events come when they come; a tick reads what was pressed at any moment since the last one.

A key is a name: a key of the keyboard by its pygame name, lower case (`left`, `a`, `space`), a button or direction of a
gamepad (`pad:a`, `pad:left`, `pad:rt`), or one of the mouse (`mouse:left`, `mouse:move right`, `mouse:wheel up`). Where
a world is drawn in, the place of the pointer is told by keys, too: the binary digits of its x and y (`pointer:x64`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.manifest import Action

BESIDE = {  # default keys of worlds that name only keyboard keys: the same place on a gamepad and on the mouse
    "left": ("pad:left",), "right": ("pad:right",), "up": ("pad:up", "pad:a"), "down": ("pad:down", "pad:b"),
    "space": ("pad:x", "mouse:left"), "return": ("pad:y", "mouse:right"),
}  # fmt: skip


POINTER = "pointer:"  # how the names of such keys begin
POINTER_DIGITS = 7


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
        self._pointer: frozenset[str] = frozenset()  # keys that tell its latest place; others since do not count
        self._arrived: float | None = None
        self._newest = 0
        self.bind(default_bindings(actions))

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

    def point(self, x: float, y: float, at: float) -> None:
        """The pointer is here, within 0..1 of the picture's width and height."""
        steps = 1 << POINTER_DIGITS
        places = {axis: min(max(int(place * steps), 0), steps - 1) for axis, place in (("x", x), ("y", y))}
        keys = {
            f"{POINTER}{axis}{1 << digit}"
            for axis, place in places.items()
            for digit in range(POINTER_DIGITS)
            if place >> digit & 1
        }
        pointer = frozenset(keys & self.meaning.keys())
        if pointer != self._pointer:
            self._pointer = pointer
            self._note(at)

    def release_all(self) -> None:
        """For when key releases go elsewhere: the window has lost the keyboard."""
        self._held.clear()
        self._tapped.clear()

    def read(self) -> Reading:
        """What is held now or was pressed since the last reading, however short the tap."""
        keys = self._held | self._tapped | (self._pointer & self.meaning.keys())
        reading = Reading(frozenset().union(*(self.meaning[key] for key in keys)), self._arrived, self._newest)
        self._tapped.clear()
        self._arrived = None
        return reading

    def _note(self, at: float) -> None:
        self._newest += 1
        self._arrived = at


def default_bindings(actions: Iterable[Action]) -> dict[str, tuple[str, ...]]:
    """For every action the world's own keys, and what lies beside them on a gamepad and a mouse, unless the world has
    another use for that.
    """
    actions = tuple(actions)
    used = {key for action in actions for key in action.keys}
    return {
        action.name: (
            *action.keys,
            *(
                other
                for key in action.keys
                if not any(":" in own for own in action.keys)
                for other in BESIDE.get(key, ())
                if other not in used
            ),
        )
        for action in actions
    }

"""Recognises a held-out colour name however it is written, so that no list of names brings it into training."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_SHORTEST_SLIP = 5  # a shorter name that differs by one letter is another word: "sage", "cage"


class Forbidden:
    """Names that must not be learned: `name in Forbidden(names)`. Strict: "dusky green" counts as "dusty green"."""

    def __init__(self, names: Collection[str]):
        self._exact = {joined(name) for name in names}
        self._slips = {slip for name in self._exact if len(name) >= _SHORTEST_SLIP for slip in one_letter_less(name)}

    def __contains__(self, name: str) -> bool:
        """Whether it is one of the names joined, hyphenated, in the plural or with a letter wrong."""
        written = joined(name)
        if not self._exact.isdisjoint((written, written.removesuffix("s"), written.removesuffix("es"))):
            return True
        return len(written) >= _SHORTEST_SLIP and not self._slips.isdisjoint(one_letter_less(written))


def joined(name: str) -> str:
    """A name's letters in lower case, without accents and brackets: "Blueish-Gray (web)" -> "bluishgrey"."""
    plain = unicodedata.normalize("NFKD", re.sub(r"\(.*?\)", "", name)).encode("ascii", "ignore").decode().lower()
    letters = re.sub(r"[^a-z0-9]", "", plain).replace("gray", "grey").replace("redish", "reddish")
    return re.sub(r"(?<=[a-z])eish", "ish", letters)


def one_letter_less(word: str) -> set[str]:
    """The word, and it with any one letter taken out: two words that share one differ by about a letter."""
    return {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}

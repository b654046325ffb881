"""Prompts: a text to token numbers, with the tokenizer that a world brings along; and the way from one text to another.

Halfway between two texts is a text, too: `a red road -> snow 2/4`. So a switch that takes several ticks is so many
switches, and replays, saves and branches know nothing new.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runtime.errors import PromptError, WorldFileError
from runtime.manifest import MAX_TEXT
from runtime.world import World

MAX_TOKENS = 512
BETWEEN = re.compile(r"(.*) -> (.+) ([1-9]\d{0,5})/([1-9]\d{0,5})", re.DOTALL)


class Embeds(Protocol):
    def embed(self, text: str) -> np.ndarray: ...


def embed_prompt(world: Embeds, text: str) -> np.ndarray:
    """The prompt embedding of a text, or of a place between two: float32 [1, tokens, dim]. world: its backend."""
    found = BETWEEN.fullmatch(text)
    if not found or int(found[3]) >= int(found[4]):
        return world.embed(text)
    check_prompt(text)
    return blend(embed_prompt(world, found[1]), world.embed(found[2]), int(found[3]) / int(found[4]))


def way_to(before: str, after: str, ticks: int) -> list[str]:
    """The prompts of so many ticks, of which the last is the new one."""
    return [*(f"{before} -> {after} {tick}/{ticks}" for tick in range(1, ticks)), after]


def blend(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Row by row along the great circle, lengths in proportion; rows without length are mixed in a straight line."""
    lengths = [np.linalg.norm(part, axis=-1, keepdims=True) for part in (before, after)]
    one, other = (part / size.clip(min=1e-12) for part, size in zip((before, after), lengths, strict=True))
    angle = np.arccos((one * other).sum(-1, keepdims=True).clip(-1, 1))
    straight = (1 - share) * before + share * after
    turned = np.sin((1 - share) * angle) * one + np.sin(share * angle) * other
    turned = turned / np.sin(angle).clip(min=1e-12) * ((1 - share) * lengths[0] + share * lengths[1])
    flat = (np.sin(angle) < 1e-4) | (lengths[0] == 0) | (lengths[1] == 0)
    return np.where(flat, straight, turned).astype(np.float32)


@dataclass(frozen=True)
class Tokenizer:
    """tokenizer: a tokenizers.Tokenizer, read from the world's tokenizer.json."""

    tokenizer: Any

    @staticmethod
    def of(world: World) -> Tokenizer:
        import tokenizers

        file = world.manifest.graphs["prompt"].tokenizer
        if file is None:
            raise WorldFileError(f"{world.path}: its prompt graph names no tokenizer: export the world again")
        try:
            return Tokenizer(tokenizers.Tokenizer.from_str(world.read(file).decode("utf-8")))
        except Exception as error:  # tokenizers raises bare Exception
            if isinstance(error, WorldFileError):
                raise
            raise WorldFileError(
                f"{world.path}: {file} is not a tokenizer ({error}): export the world again"
            ) from error

    def __call__(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token numbers and mask (1 = a token), both int64 [1, tokens]."""
        check_prompt(text)
        encoding = self.tokenizer.encode(text)
        ids = np.array([encoding.ids[:MAX_TOKENS]], np.int64)
        mask = np.array([encoding.attention_mask[:MAX_TOKENS]], np.int64)
        if ids.shape[1] == 0:
            raise PromptError("the prompt is empty: say what the world should look like")
        return ids, mask


def check_prompt(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise PromptError(f"the prompt has {len(text)} characters, the limit is {MAX_TEXT}")
    if not text.strip():
        raise PromptError("the prompt is empty: say what the world should look like")

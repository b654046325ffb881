"""Text → token numbers, with the tokenizer that a world brings along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.errors import PromptError, WorldFileError
from runtime.manifest import MAX_TEXT
from runtime.world import World

MAX_TOKENS = 512


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

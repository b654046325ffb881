"""Prompts from a text file, one a line: all the data that this distillation needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.errors import DatasetError

Encoder = Callable[[str], Tensor]  # a text to [1, rows, dim]


@dataclass(frozen=True)
class Prompts:
    """Texts, and what turns them into embeddings when they are drawn: many thousands would not fit into memory.

    blank: [1, rows, dim], what a teacher is guided away from.
    """

    texts: tuple[str, ...]
    encode: Encoder
    blank: Tensor

    @staticmethod
    def read(path: Path, encode: Encoder, avoid: str = "") -> Prompts:
        """From a file's lines; empty ones do not count. avoid: the text behind `blank`."""
        return Prompts(read_lines(path), encode, encode(avoid).clone())

    def draw(self, count: int, draw: torch.Generator) -> Tensor:
        """[count, rows, dim], each of a text drawn at random."""
        chosen = torch.randint(len(self.texts), (count,), device=draw.device, generator=draw)
        return self.told([self.texts[number] for number in chosen.tolist()])

    def told(self, texts: list[str]) -> Tensor:
        """[texts, rows, dim]."""
        return torch.cat([self.encode(text) for text in texts]).clone()  # of no inference mode: gradient may pass by


def read_lines(path: Path) -> tuple[str, ...]:
    """The prompts of a file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: no prompts can be read ({error}): give a text file, one prompt a line") from error
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise DatasetError(f"{path}: holds no prompts: write one a line")
    return texts

"""Recorded pictures on their way into torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from worldmodel.train.dataset import Dataset


def as_input(pictures: Tensor) -> Tensor:
    """uint8 [batch, height, width, 3] to float32 [batch, 3, height, width] in 0…1."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def shards_of_frames(dataset: Dataset, shards: Iterable[int] | None = None) -> Iterator[Tensor]:
    """The frames of every shard (or of some) in turn, uint8 [frames, height, width, 3], read ahead by others."""
    wanted = list(range(len(dataset.shards)) if shards is None else shards)
    workers = min(12, (os.cpu_count() or 1) - 1) if len(wanted) > 1 else 0  # one shard leaves nothing to read ahead
    yield from DataLoader(_Shards(dataset), sampler=wanted, batch_size=None, num_workers=workers)


class _Shards(TorchDataset[Tensor]):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, shard: int) -> Tensor:
        return torch.from_numpy(self.dataset.read(shard, "frames"))

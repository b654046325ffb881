"""A short recording of any environment, made in this process."""

from __future__ import annotations

from pathlib import Path

from worldmodel.train.dataset import Dataset, DatasetInfo, ShardWriter
from worldmodel.train.envs import Adapter
from worldmodel.train.record import record_frames


def recorded(folder: Path, adapter: Adapter, name: str, frames: int, seed: int = 3) -> Dataset:
    """name: of the adapter."""
    info = DatasetInfo(
        env=adapter.env_id, adapter=name, options={}, tick_hz=adapter.tick_hz, height=adapter.height,
        width=adapter.width, actions=list(adapter.actions), keys=adapter.keys, mirror=[], facts=list(adapter.facts),
        split="train", seed=seed, shard_frames=frames,
    )  # fmt: skip
    info.write(folder)
    with ShardWriter(folder / "shard-00000.h5", info) as writer:
        list(record_frames(adapter, writer, seed, 0, frames))
    return Dataset(folder)

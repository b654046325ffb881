"""Record an environment: one process per core, each writing whole shards that depend on nothing but (seed, shard).

So a killed recording loses only its unfinished shards, and resuming makes exactly those that are missing.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import DatasetError
from worldmodel.train.dataset import Dataset, DatasetInfo, ShardWriter, frames_in, write_json
from worldmodel.train.envs import Adapter, make_adapter

EPISODE_TICKS = (300, 600)  # shortest and longest episode; the last of a shard is cut where the shard is full


@dataclass(frozen=True)
class Recording:
    """What to record."""

    adapter: str
    options: dict[str, Any]  # the adapter's constructor arguments, plain JSON
    frames: int
    seed: int
    split: str
    shard_frames: int = 4000

    def shards(self) -> Iterator[tuple[int, int]]:
        """(index, frames) of every shard."""
        for index, start in enumerate(range(0, self.frames, self.shard_frames)):
            yield index, min(self.shard_frames, self.frames - start)


def prepare(recording: Recording, folder: Path, resume: bool = False) -> list[tuple[int, int]]:
    """Write or check dataset.json, clear what a killed writer left, and list the shards that are missing."""
    with closing(make_adapter(recording.adapter, **recording.options)) as adapter:
        info = _describe(adapter, recording)
    if (folder / "dataset.json").exists():
        if not resume:
            raise DatasetError(f"{folder}: a data set is here already; add --resume to go on, or choose another --out")
        found = DatasetInfo.read(folder)
        if found != info:
            other = [name for name in vars(info) if vars(info)[name] != vars(found)[name]]
            raise DatasetError(
                f"{folder}: recorded with other {', '.join(other)}; resume with the same or change --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    info.write(folder)
    for left in folder.glob("*.unfinished"):
        left.unlink()
    return [(index, frames) for index, frames in recording.shards() if frames_in(_path(folder, index)) != frames]


def record(
    recording: Recording,
    folder: Path,
    shards: list[tuple[int, int]],
    workers: int,
    minutes: float | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> dict[str, Any]:
    """Record the shards that `prepare` found missing; return the statistics, also written to statistics.json.

    `progress` is told the frames recorded so far, about twice a second. After `minutes` no further shard is begun.
    """
    begun = time.monotonic()
    todo = list(shards)
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    running: set[Future[None]] = set()
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(counter,)) as pool:
        while todo or running:
            if minutes is not None and time.monotonic() - begun > 60 * minutes:
                todo.clear()
            while todo and len(running) < workers:
                running.add(pool.submit(_record_shard, recording, folder, *todo.pop(0)))
            done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            progress(counter.value)
    seconds = time.monotonic() - begun
    statistics = measure(Dataset(folder))
    statistics["recorded_now"] = counter.value
    statistics["seconds"] = round(seconds, 1)
    statistics["frames_per_s"] = round(counter.value / seconds, 1)
    write_json(folder / "statistics.json", statistics)
    return statistics


def _describe(adapter: Adapter, recording: Recording) -> DatasetInfo:
    return DatasetInfo(
        env=adapter.env_id,
        adapter=recording.adapter,
        options=recording.options,
        tick_hz=adapter.tick_hz,
        height=adapter.height,
        width=adapter.width,
        actions=list(adapter.actions),
        keys=adapter.keys,
        mirror=[list(pair) for pair in adapter.mirror],
        facts=list(adapter.facts),
        split=recording.split,
        seed=recording.seed,
        shard_frames=recording.shard_frames,
    )


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.h5"


_counter: Any = None  # frames recorded by all workers of this process's pool


def _begin_worker(counter: Any) -> None:
    global _counter
    _counter = counter


def _record_shard(recording: Recording, folder: Path, index: int, frames: int) -> None:
    adapter = make_adapter(recording.adapter, **recording.options)
    with closing(adapter), ShardWriter(_path(folder, index), _describe(adapter, recording)) as writer:
        for written in record_frames(adapter, writer, recording.seed, index, frames):
            if written % 50 == 0 or written == frames:
                with _counter.get_lock():
                    _counter.value += written - (written - 1) // 50 * 50


def record_frames(adapter: Adapter, writer: ShardWriter, seed: int, shard: int, frames: int) -> Iterator[int]:
    """Fill `writer` with episodes until it holds `frames` frames; yields the count after each."""
    episode = 0
    while len(writer) < frames:
        rng = np.random.default_rng([seed, shard, episode])
        number = shard * 1000 + episode
        frame = adapter.reset(int(rng.integers(2**31)))
        drive = adapter.policy(rng)
        length = int(rng.integers(*EPISODE_TICKS, endpoint=True))
        action = np.zeros(len(adapter.actions), bool)
        over = False
        for _ in range(min(length, frames - len(writer))):
            writer.add(
                frame, action, number, adapter.scene(), adapter.read_facts(), adapter.outcome(), adapter.motion()
            )
            yield len(writer)
            if over:
                break
            action = drive()
            frame, over = adapter.step(action)
        episode += 1


def measure(dataset: Dataset) -> dict[str, Any]:
    """Statistics of a data set: size, shares of keys, and what the facts tell where they are the car's."""
    actions = np.concatenate([dataset.read(shard, "actions") for shard in range(len(dataset.shards))]).astype(bool)
    facts = np.concatenate([dataset.read(shard, "facts") for shard in range(len(dataset.shards))])
    found: dict[str, Any] = {
        "frames": len(actions),
        "episodes": len(dataset.episodes),
        "scenes": sum(len(dataset.scenes(shard)) for shard in range(len(dataset.shards))),
        "hours": round(len(actions) / dataset.info.tick_hz / 3600, 2),
        "key_share": {name: _share(actions[:, i]) for i, name in enumerate(dataset.info.actions)},
        "no_key_share": _share(~actions.any(1)),
    }
    if not dataset.without_outcomes:
        rewards, ends = dataset.outcomes()
        found |= {"reward_mean": round(float(rewards.mean()), 4), "rewarded_share": _share(rewards != 0)}
        found["ends"] = int(ends.sum())
    known = {name: facts[:, i] for i, name in enumerate(dataset.info.facts)}
    if "on_road" in known:
        found["off_road_share"] = _share(known["on_road"] < 0.5)
    if "slip" in known:
        found["skid_share"] = _share(np.abs(known["slip"]) > 0.3)
    if "speed" in known:
        found["at_rest_share"] = _share(known["speed"] < 0.5)
        counts, edges = np.histogram(known["speed"], bins=10)
        found["speed_histogram"] = {
            f"{low:.1f}-{high:.1f}": round(count / len(facts), 4)
            for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True)
        }
    if "yaw_rate" in known:
        found["turning_left_share"] = _share(known["yaw_rate"] > 0.1)
        found["turning_right_share"] = _share(known["yaw_rate"] < -0.1)
    return found


def _share(condition: Any) -> float:
    return round(float(np.mean(condition)), 4)

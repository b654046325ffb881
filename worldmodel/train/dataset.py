"""Read and write recordings: a folder with dataset.json and HDF5 shards, each written whole.

DIR/dataset.json    version, env, adapter, options, tick_hz, height, width, actions, keys, mirror, facts, split, seed
DIR/shard-00000.h5  frames uint8 [n, height, width, 3]; actions uint8 [n, actions], actions[i] led to frames[i], zeros
                    at an episode's first frame; episode int32 [n], unique in the data set; scene int32 [n], an index
                    into the attribute `scenes` (JSON list of {"captions": [...], …}); facts float32 [n, facts];
                    reward float32 [n] and terminated bool [n] of the step that led to the frame, not in older ones;
                    motion float16 [n, rows, columns, 2], see `Adapter.motion`, where the adapter tells it, not in
                    older ones
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.train.envs import Motion, Outcome

VERSION = 1
_PER_FRAME = ("frames", "actions", "episode", "scene", "facts")


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says."""

    env: str
    adapter: str
    options: dict[str, Any]  # the adapter's constructor arguments
    tick_hz: float
    height: int
    width: int
    actions: list[str]
    keys: dict[str, list[str]]
    mirror: list[list[str]]
    facts: list[str]
    split: str
    seed: int
    shard_frames: int
    version: int = VERSION

    def write(self, folder: Path) -> None:
        """Write dataset.json."""
        write_json(folder / "dataset.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> DatasetInfo:
        """Read dataset.json."""
        path = folder / "dataset.json"
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            raise DatasetError(f"{folder}: no dataset.json here; 'worldloop record' makes one") from None
        except ValueError as error:
            raise DatasetError(f"{path}: not JSON ({error}); record the data set again") from None
        if fields.get("version") != VERSION:
            raise DatasetError(
                f"{path}: version {fields.get('version')!r}, this program reads {VERSION}; record it again"
            )
        try:
            return cls(**fields)
        except TypeError as error:
            raise DatasetError(f"{path}: {error}; record the data set again") from None


@dataclass(frozen=True)
class Episode:
    """Where one episode lies: rows `start` to `stop` of shard `shard`."""

    number: int
    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Arrays:
    """A whole data set in memory; row i of each belongs to the same frame."""

    frames: NDArray[np.uint8]  # [n, height, width, 3]
    actions: NDArray[np.uint8]  # [n, actions]
    episode: NDArray[np.int32]  # [n]
    scene: NDArray[np.int32]  # [n], index into `scenes`
    facts: NDArray[np.float32]  # [n, facts]
    scenes: list[dict[str, Any]]


class Dataset:
    """A recording on disk; shards are opened when they are read.

    Iterating gives (frame, action, fact) row by row; `load` gives everything at once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = DatasetInfo.read(self.folder)
        self.shards = sorted(self.folder.glob("shard-*.h5"))
        if not self.shards:
            raise DatasetError(f"{folder}: no shard-*.h5 here; 'worldloop record … --resume' goes on recording")

    def __len__(self) -> int:
        return sum(self.shard_lengths)

    @functools.cached_property
    def shard_lengths(self) -> list[int]:
        """Frames in each shard."""
        return [len(self.read(shard, "episode")) for shard in range(len(self.shards))]

    @functools.cached_property
    def episodes(self) -> list[Episode]:
        """All episodes, in stored order."""
        found = []
        for shard in range(len(self.shards)):
            numbers = self.read(shard, "episode")
            bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            found += [Episode(int(numbers[a]), shard, a, b) for a, b in itertools.pairwise(bounds)]
        return found

    def read(self, shard: int, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start to stop of one of frames, actions, episode, scene, facts."""
        with _open(self.shards[shard]) as file:
            rows: NDArray[Any] = file[name][start:stop]
        return rows

    @functools.cached_property
    def without_outcomes(self) -> list[Path]:
        """Shards of an earlier version, which tell neither rewards nor ends."""
        found = []
        for path in self.shards:
            with _open(path) as file:
                if "reward" not in file:
                    found.append(path)
        return found

    def motion(self) -> NDArray[np.float16]:
        """How far what each frame shows came since the one before, in stored order: [frames, rows, columns, 2], see
        `Adapter.motion`.
        """
        found = []
        for path in self.shards:
            with _open(path) as file:
                if "motion" not in file:
                    raise DatasetError(f"{path}: recorded without motion; record it again with --tracks")
                found.append(file["motion"][:])
        return np.concatenate(found)

    def outcomes(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Reward and end of the step that led to each frame, in stored order: float32 and bool [frames]."""
        if without := self.without_outcomes:
            raise DatasetError(f"{without[0]}: recorded without rewards; record it again")
        found = []
        for path in self.shards:
            with _open(path) as file:
                found.append((file["reward"][:], file["terminated"][:]))
        rewards, ends = zip(*found, strict=True)
        return np.concatenate(rewards), np.concatenate(ends)

    def scenes(self, shard: int) -> list[dict[str, Any]]:
        """The shard's scenes, which its `scene` column counts."""
        with _open(self.shards[shard]) as file:
            found: list[dict[str, Any]] = json.loads(file.attrs["scenes"])
        return found

    def captions(self, episode: Episode) -> list[list[str]]:
        """The captions in force at each frame of an episode."""
        scenes = self.scenes(episode.shard)
        return [scenes[index]["captions"] for index in self.read(episode.shard, "scene", episode.start, episode.stop)]

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]]:
        for shard in range(len(self.shards)):
            with _open(self.shards[shard]) as file:
                actions, facts = file["actions"][:], file["facts"][:]
                for start in range(0, len(actions), 256):
                    frames = file["frames"][start : start + 256]
                    rows = slice(start, start + 256)
                    yield from zip(frames, actions[rows], facts[rows], strict=True)

    def load(self, frames: int | None = None) -> Arrays:
        """Everything, or the first `frames` rows, in memory."""
        count = min(len(self), frames or len(self))
        pictures = np.empty((count, self.info.height, self.info.width, 3), np.uint8)
        rest: dict[str, list[NDArray[Any]]] = {name: [] for name in _PER_FRAME if name != "frames"}
        scenes: list[dict[str, Any]] = []
        at = 0
        for shard, path in enumerate(self.shards):
            rows = min(self.shard_lengths[shard], count - at)
            if rows == 0:
                break
            with _open(path) as file:
                file["frames"].read_direct(pictures, np.s_[:rows], np.s_[at : at + rows])
                for name, parts in rest.items():
                    parts.append(file[name][:rows] + (len(scenes) if name == "scene" else 0))
                scenes += json.loads(file.attrs["scenes"])
            at += rows
        columns = {name: np.concatenate(parts) for name, parts in rest.items()}
        return Arrays(frames=pictures, scenes=scenes, **columns)


class ShardWriter:
    """Write one shard; it appears under its name when it is complete, or not at all."""

    _BATCH = 64  # frames held back, so that a write is worth its overhead

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self._path = path
        self._unfinished = path.with_suffix(".h5.unfinished")
        self._file = h5py.File(self._unfinished, "w")
        frame = (info.height, info.width, 3)
        self._file.create_dataset(
            "frames", (0, *frame), np.uint8, maxshape=(None, *frame), chunks=(1, *frame), compression="lzf"
        )
        self._frames: list[NDArray[np.uint8]] = []
        self._rows: dict[str, list[Any]] = {"actions": [], "episode": [], "scene": [], "facts": []}
        self._outcomes: list[Outcome] = []
        self._motion: list[Motion] = []
        self._scenes: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._rows["episode"])

    def add(
        self,
        frame: NDArray[np.uint8],
        action: NDArray[Any],
        episode: int,
        scene: dict[str, Any],
        facts: NDArray[np.float32],
        outcome: Outcome | None = None,
        motion: Motion | None = None,
    ) -> None:
        """Append one frame. A `scene` unlike the one before begins a new scene. outcome, motion: of all frames or of
        none.
        """
        if not self._scenes or scene != self._scenes[-1]:
            self._scenes.append(scene)
        self._frames.append(frame)
        self._rows["actions"].append(np.asarray(action, np.uint8))
        self._rows["episode"].append(episode)
        self._rows["scene"].append(len(self._scenes) - 1)
        self._rows["facts"].append(facts)
        if outcome is not None:
            self._outcomes.append(outcome)
        if motion is not None:
            self._motion.append(motion)
        if len(self._frames) == self._BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._frames:
            stored = self._file["frames"]
            stored.resize(len(stored) + len(self._frames), axis=0)
            stored[-len(self._frames) :] = np.stack(self._frames)
            self._frames.clear()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
            self._file["actions"] = np.array(self._rows["actions"], np.uint8)
            self._file["episode"] = np.array(self._rows["episode"], np.int32)
            self._file["scene"] = np.array(self._rows["scene"], np.int32)
            self._file["facts"] = np.array(self._rows["facts"], np.float32)
            if self._outcomes:
                assert len(self._outcomes) == len(self), "frames with and without an outcome in one shard"
                self._file["reward"] = np.array([outcome.reward for outcome in self._outcomes], np.float32)
                self._file["terminated"] = np.array([outcome.terminated for outcome in self._outcomes], bool)
            if self._motion:
                assert len(self._motion) == len(self), "frames with and without motion in one shard"
                motion = np.array(self._motion, np.float16)
                self._file.create_dataset(
                    "motion", data=motion, chunks=(min(len(motion), 64), *motion.shape[1:]), compression="lzf"
                )
            self._file.attrs["scenes"] = json.dumps(self._scenes)
        self._file.close()
        if kind is None:
            os.replace(self._unfinished, self._path)
        else:
            self._unfinished.unlink()


def frames_in(path: Path) -> int:
    """Frames in a shard; 0 when there is none."""
    if not path.exists():
        return 0
    with _open(path) as file:
        return len(file["episode"])


def write_json(path: Path, content: object) -> None:
    """Write JSON whole: readers see the old file or the new one."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path}: unreadable ({error}); delete it and record again with --resume") from None

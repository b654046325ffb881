"""What a recording promises: the same data from the same seed, whatever is killed or resumed in between."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("h5py")

from worldmodel.errors import DatasetError
from worldmodel.train.contact_sheet import show
from worldmodel.train.dataset import Dataset, DatasetInfo, ShardWriter
from worldmodel.train.envs import captions, make_adapter
from worldmodel.train.record import Recording, measure, prepare, record, record_frames


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    record_all(small(), folder)
    return folder


def small(frames: int = 900) -> Recording:
    options = {"split": "train", "size": 64}
    return Recording("car_racing", options, frames=frames, seed=3, split="train", shard_frames=400)


def record_all(recording: Recording, folder: Path, resume: bool = False) -> None:
    record(recording, folder, prepare(recording, folder, resume), workers=2)


def test_a_recording_has_the_frames_that_were_asked_for(recorded: Path) -> None:
    dataset = Dataset(recorded)
    assert dataset.shard_lengths == [400, 400, 100]
    arrays = dataset.load()
    assert arrays.frames.shape == (900, 64, 64, 3) and arrays.frames.std() > 10
    assert arrays.actions.shape == (900, 4) and arrays.facts.shape == (900, len(dataset.info.facts))
    assert len({episode.number for episode in dataset.episodes}) == len(dataset.episodes)
    first = [episode.start for episode in dataset.episodes if episode.shard == 0]
    assert not arrays.actions[first].any()


def test_iterating_and_loading_read_the_same(recorded: Path) -> None:
    dataset = Dataset(recorded)
    arrays = dataset.load(450)
    for row, (frame, action, facts) in zip(range(450), dataset, strict=False):
        assert np.array_equal(frame, arrays.frames[row])
        assert np.array_equal(action, arrays.actions[row]) and np.array_equal(facts, arrays.facts[row])


def test_captions_name_the_colours_that_the_frame_shows(recorded: Path) -> None:
    dataset = Dataset(recorded)
    arrays = dataset.load()
    for row in range(0, 900, 37):
        scene = arrays.scenes[arrays.scene[row]]
        counts = {tuple(scene["road"]), tuple(scene["grass"])}
        shown = {tuple(pixel) for pixel in arrays.frames[row].reshape(-1, 3).tolist()}
        assert tuple(scene["grass"]) in shown
        assert captions.delta_e(scene["road"], captions.all_names()[scene["road_name"]]) <= 3
        assert len(counts) == 2 and all(scene["road_name"] in text.lower() for text in scene["captions"])


def test_resume_makes_exactly_what_is_missing(recorded: Path, tmp_path: Path) -> None:
    record_all(small(frames=850), tmp_path / "again")
    (tmp_path / "again" / "shard-00001.h5").unlink()
    (tmp_path / "again" / "shard-00001.h5.unfinished").write_bytes(b"half a shard")
    kept = (tmp_path / "again" / "shard-00000.h5").stat().st_mtime_ns
    record_all(small(frames=900), tmp_path / "again", resume=True)
    assert (tmp_path / "again" / "shard-00000.h5").stat().st_mtime_ns == kept
    assert not list(tmp_path.glob("*/*.unfinished"))
    first, second = Dataset(recorded).load(), Dataset(tmp_path / "again").load()
    assert np.array_equal(first.frames, second.frames) and np.array_equal(first.facts, second.facts)


def test_a_second_recording_in_the_same_folder_is_refused(recorded: Path) -> None:
    with pytest.raises(DatasetError, match="--resume"):
        prepare(small(), recorded)
    other = Recording("car_racing", {"split": "train", "size": 32}, 900, seed=3, split="train", shard_frames=400)
    with pytest.raises(DatasetError, match="height"):
        prepare(other, recorded, resume=True)


def test_a_killed_writer_leaves_no_shard(tmp_path: Path) -> None:
    adapter = make_adapter("car_racing", size=32)
    info = DatasetInfo("e", "car_racing", {}, 25, 32, 32, list(adapter.actions), {}, [], [], "train", 0, 100)
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "shard-00000.h5", info) as writer:
        for written in record_frames(adapter, writer, seed=0, shard=0, frames=100):
            if written == 70:
                raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "junk", json.dumps({"version": 9})])
def test_a_folder_that_is_no_dataset_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match="record"):
        Dataset(tmp_path)


def test_statistics_count_keys_and_turns(recorded: Path) -> None:
    statistics = measure(Dataset(recorded))
    assert statistics["frames"] == 900
    assert set(statistics["key_share"]) == {"left", "right", "gas", "brake"}
    assert 0 < statistics["turning_left_share"] < 1


@pytest.mark.parametrize("name", ["sheet.png", "film.mp4"])
def test_a_recording_can_be_looked_at(recorded: Path, tmp_path: Path, name: str) -> None:
    show(recorded, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 10_000

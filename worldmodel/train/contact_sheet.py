"""Show a recording: a sheet of frames from all over it, or a video of its first episodes with the held keys."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from worldmodel.errors import DatasetError
from worldmodel.train.dataset import Dataset, Episode

COLUMNS, ROWS = 10, 8
VIDEO_SECONDS = 60
_LINES_HEIGHT = 16  # pixels of a line of text


def show(folder: Path, out: Path) -> None:
    """Write a contact sheet (.png) or a video (.mp4) of the data set in `folder`."""
    dataset = Dataset(folder)
    if out.suffix == ".png":
        cv2.imwrite(str(out), cv2.cvtColor(contact_sheet(dataset), cv2.COLOR_RGB2BGR))
    elif out.suffix == ".mp4":
        write_video(dataset, out)
    else:
        raise DatasetError(f"{out}: give a name that ends in .png (contact sheet) or .mp4 (video)")


def contact_sheet(dataset: Dataset) -> NDArray[np.uint8]:
    """Frames spread evenly over the episodes, each under its keys and caption. RGB [height, width, 3]."""
    episodes = dataset.episodes
    picked = [episodes[i] for i in np.linspace(0, len(episodes) - 1, COLUMNS * ROWS).astype(int)]
    cells = [_cell(dataset, episode, (0.15 + 0.7 * i / len(picked))) for i, episode in enumerate(picked)]
    return np.vstack([np.hstack(cells[row * COLUMNS : (row + 1) * COLUMNS]) for row in range(ROWS)])


def write_video(dataset: Dataset, out: Path) -> None:
    """The first minute of the data set, twice as large, with the held keys written under it."""
    import av

    with av.open(str(out), "w") as video:
        stream = video.add_stream("h264", rate=Fraction(dataset.info.tick_hz))
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = 2 * dataset.info.height + _LINES_HEIGHT, 2 * dataset.info.width
        for count, (frame, action, _) in enumerate(dataset):
            if count >= VIDEO_SECONDS * dataset.info.tick_hz:
                break
            picture = _captioned(np.repeat(np.repeat(frame, 2, 0), 2, 1), _held(dataset, action))
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        video.mux(stream.encode())


def _cell(dataset: Dataset, episode: Episode, part: float) -> NDArray[np.uint8]:
    row = episode.start + int(part * len(episode))
    frame = dataset.read(episode.shard, "frames", row, row + 1)[0]
    action = dataset.read(episode.shard, "actions", row, row + 1)[0]
    scene = dataset.scenes(episode.shard)[dataset.read(episode.shard, "scene", row, row + 1)[0]]
    picture = np.pad(np.repeat(np.repeat(frame, 2, 0), 2, 1), ((2, 2), (2, 2), (0, 0)))
    return _captioned(picture, _held(dataset, action), *scene["captions"][:1])


def _held(dataset: Dataset, action: NDArray[np.uint8]) -> str:
    return " ".join(name for name, held in zip(dataset.info.actions, action, strict=True) if held) or "-"


def _captioned(picture: NDArray[np.uint8], *lines: str) -> NDArray[np.uint8]:
    below = np.zeros((_LINES_HEIGHT * len(lines), picture.shape[1], 3), np.uint8)
    for row, line in enumerate(lines):
        cv2.putText(
            below, line, (3, _LINES_HEIGHT * row + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (255, 255, 255), 1, cv2.LINE_AA
        )
    return np.vstack([picture, below])

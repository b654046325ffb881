"""Where frames go besides a window: a checksum, an array file, a video."""

from __future__ import annotations

import zipfile
import zlib
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from runtime.errors import UsageError

VIDEO_HEIGHT = 480  # pixels at least: small worlds are enlarged by a whole number
GIF_TIMES = 2  # enlargement; a GIF grows with every pixel
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".mov": "libx264", ".gif": "gif"}


class Presenter(Protocol):
    """Takes every frame, uint8 [height, width, 3], in order."""

    def show(self, frame: np.ndarray) -> None: ...


class Checksum:
    """CRC-32 of the bytes of all frames."""

    def __init__(self) -> None:
        self.value = 0

    def show(self, frame: np.ndarray) -> None:
        self.value = zlib.crc32(frame.tobytes(), self.value)


class FramesFile:
    """An .npz with one array, `frames`: uint8 [ticks, height, width, 3], written as it comes."""

    def __init__(self, path: Path, ticks: int, shape: tuple[int, ...]) -> None:
        self.path, self.shape = path, (ticks, *shape)

    def __enter__(self) -> Self:
        self._zip = zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._array = self._zip.open("frames.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._array, header)
        return self

    def show(self, frame: np.ndarray) -> None:
        self._array.write(frame.tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._array.close()
        self._zip.close()


class VideoFile:
    """A video at the world's own rate: H.264, or a looping GIF, by the file's suffix."""

    def __init__(self, path: Path, tick_hz: float) -> None:
        if path.suffix.lower() not in CODECS:
            kind = path.suffix or "a file without suffix"
            raise UsageError(f"--video {path}: cannot write {kind}; use one of: {', '.join(CODECS)}")
        self.path, self.rate = path, Fraction(tick_hz).limit_denominator(1000)

    def __enter__(self) -> Self:
        import av

        self.path.open("wb").close()  # av would notice only at the first frame, and not name the file
        self._file = av.open(str(self.path), "w")
        self._stream: Any = None
        self._filter: Any = None
        self._frames = 0
        return self

    def show(self, frame: np.ndarray) -> None:
        import av

        gif = self.path.suffix.lower() == ".gif"
        picture = enlarge(frame, GIF_TIMES if gif else -(-VIDEO_HEIGHT // frame.shape[0]))
        if self._stream is None:
            self._begin(picture)
        image = av.VideoFrame.from_ndarray(picture, format="rgb24")
        image.pts, image.time_base = self._frames, 1 / self.rate
        self._frames += 1
        if self._filter is not None:
            self._filter.push(image)
        else:
            self._file.mux(self._stream.encode(image))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._filter is not None and kind is None:
            self._write_filtered()
        if self._stream is not None:
            self._file.mux(self._stream.encode(None))
        self._file.close()

    def _begin(self, picture: np.ndarray) -> None:
        height, width, _ = picture.shape
        codec = CODECS[self.path.suffix.lower()]
        self._stream = self._file.add_stream(codec, rate=self.rate)
        self._stream.width, self._stream.height = width, height
        if codec == "gif":
            self._stream.pix_fmt = "pal8"
            self._filter = palette_filter(width, height, self.rate)
        else:
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "18", "preset": "veryfast"}

    def _write_filtered(self) -> None:
        """A GIF's palette is chosen from all frames, so they come out of the filter only when the last one is in."""
        import av

        self._filter.push(None)
        while True:
            try:
                self._file.mux(self._stream.encode(self._filter.pull()))
            except (av.error.EOFError, av.error.BlockingIOError):
                return


def enlarge(frame: np.ndarray, times: int) -> np.ndarray:
    """A sharp enlargement with even sides (H.264 wants them): each pixel becomes times × times pixels."""
    large = np.repeat(np.repeat(frame, times, axis=0), times, axis=1)
    height, width, _ = large.shape
    return np.pad(large, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else large


def palette_filter(width: int, height: int, rate: Fraction) -> Any:
    """FFmpeg's two-branch filter: one makes the best 256 colours of the clip, the other uses them."""
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, make, use = (
        graph.add("split"),
        graph.add("palettegen"),
        graph.add("paletteuse", "dither=bayer:bayer_scale=4"),
    )
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph

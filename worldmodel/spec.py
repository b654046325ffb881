"""WorldSpec: everything about a world that is not a weight. Written into checkpoints and world files."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from worldmodel.errors import SpecError
from worldmodel.schedule.table import ScheduleTable, frame_wise


@dataclass(frozen=True)
class CodecSpec:
    """The small autoencoder: pictures to latents of `channels` numbers per `down` × `down` pixels."""

    channels: int = 16  # latent channels
    down: int = 8  # pixels per latent cell, a power of two
    encoder_width: int = 192  # channels at latent size
    encoder_blocks: int = 3  # residual blocks there
    decoder_widths: tuple[int, ...] = (160, 96, 48)  # channels at latent size, twice that, four times that, …
    decoder_blocks: tuple[int, ...] = (2, 2, 1)  # residual blocks at each of these sizes
    equivariant: bool = False  # trained so that moved latents are the moved picture's, for generators with a reach

    def __post_init__(self) -> None:
        if self.down & (self.down - 1) or self.down < 2 ** (len(self.decoder_widths) - 1):
            raise SpecError(
                f"codec.down must be a power of two, at least 2 to the decoder's growing levels: got {self.down}"
            )
        if len(self.decoder_widths) != len(self.decoder_blocks):
            raise SpecError("codec.decoder_widths and codec.decoder_blocks must have equal lengths")


@dataclass(frozen=True)
class GeneratorSpec:
    """The frame-causal diffusion transformer."""

    dim: int = 256
    depth: int = 6
    heads: int = 4
    patch: int = 2  # latent cells per token side
    mlp_ratio: int = 4
    action_history: int = 4  # ticks of actions that a frame is told of, its own included
    reach: tuple[int, int] = (0, 0)  # latent cells, down and across, by which things may move from frame to frame
    slow: int = 0  # of the numbers that a frame begins from, how many change slowly from tick to tick
    prompt_skip: bool = False  # whether prompts also reach the modulations past the nonlinearity shared with keys
    conv_head: int = 0  # channels of the convolutions that correct every cell by its neighbours; 0: none

    def __post_init__(self) -> None:
        if self.conv_head < 0:
            raise SpecError(f"generator.conv_head must be a number of channels, 0 for none: got {self.conv_head}")
        if len(self.reach) != 2 or min(self.reach) < 0:
            raise SpecError(f"generator.reach must be two numbers of cells, 0 or more: got {self.reach}")
        if self.dim % self.heads or self.head_dim % 16:
            raise SpecError(f"generator.dim must be heads × a multiple of 16: got {self.dim} and {self.heads} heads")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def moves(self) -> bool:
        """Whether a frame may take from other places of the frame before."""
        return any(self.reach)


@dataclass(frozen=True)
class HeadsSpec:
    """The heads that tell reward and end."""

    frames: int = 3  # newest latents that they see: place, speed, and a change of it
    width: int = 48  # channels

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise SpecError(f"heads.frames must be at least 1: got {self.frames}")


@dataclass(frozen=True)
class CameraSpec:
    """What a world is told of its camera's motion, see condition/camera_motion.py. Each is what 1 means, in a tick."""

    move: float  # the environment's units of length
    turn: float  # radians

    NUMBERS: ClassVar[int] = 4  # whether it is told; how far ahead, to the right, turned to the right

    def __post_init__(self) -> None:
        if not (self.move > 0 and self.turn > 0):
            raise SpecError(f"camera.move and camera.turn must be above 0: got {self.move} and {self.turn}")


@dataclass(frozen=True)
class DragSpec:
    """What a world is told of points that are dragged over its picture, see condition/drag.py."""

    pixels: float  # that 1 means, down or across, in a tick; a point is dragged no faster

    NUMBERS: ClassVar[int] = 3  # in each latent cell: whether a point is led to it; how far it came down, to the right

    def __post_init__(self) -> None:
        if not self.pixels > 0:
            raise SpecError(f"tracks.pixels must be above 0: got {self.pixels}")


@dataclass(frozen=True)
class WorldSpec:
    """A world: its picture, its actions, its parts."""

    name: str
    height: int  # pixels
    width: int  # pixels
    tick_hz: float
    actions: tuple[str, ...]
    keys: dict[str, list[str]]  # default keys of every action
    environment: str  # adapter that recorded the data, see worldmodel/train/envs
    environment_id: str = ""  # which of its environments, where it is one for many
    mirror: tuple[tuple[str, str], ...] = ()  # actions that swap when the picture is mirrored
    prompt_tokens: int = 4
    prompt_dim: int = 64
    sink: int = 1  # frames kept for ever
    sink_keep: float = 1.0  # its share in the average with each frame that leaves the window (EMA sink); 1: none of it
    window: int = 3  # latest clean frames that attention reads
    codec: CodecSpec = field(default_factory=CodecSpec)
    generator: GeneratorSpec = field(default_factory=GeneratorSpec)
    schedule: ScheduleTable = field(default_factory=lambda: frame_wise(1.0, 0.3))
    heads: HeadsSpec | None = None  # of reward and end, in worlds that tell them
    camera: CameraSpec | None = None  # in worlds whose camera can be led
    tracks: DragSpec | None = None  # in worlds where points of the picture can be

    def __post_init__(self) -> None:
        if self.sink != 1:
            raise SpecError(f"the native world keeps exactly one sink frame: got sink={self.sink}")
        if not 0 <= self.sink_keep <= 1:
            raise SpecError(f"sink_keep must lie within 0..1: got {self.sink_keep}")
        if self.heads and self.heads.frames > self.window + 1:
            raise SpecError(f"heads see at most window + 1 frames: got {self.heads.frames} and window={self.window}")
        if self.width % (self.codec.down * self.generator.patch):
            raise SpecError(f"width must be a multiple of {self.codec.down * self.generator.patch}: got {self.width}")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns. Rows are padded up to a whole number of patches."""
        side = self.codec.down * self.generator.patch
        rows = -(-self.height // side) * self.generator.patch
        return self.codec.channels, rows, self.width // self.codec.down

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        _, rows, columns = self.latent_shape
        return rows * columns // self.generator.patch**2

    @property
    def controls(self) -> int:
        """Numbers that a frame is told of what the player did in a tick: the keys, then the camera's motion."""
        return len(self.actions) + (CameraSpec.NUMBERS if self.camera else 0)

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        for name in ("camera", "tracks"):  # files of worlds without stay what they were before there were any with
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields)

    @staticmethod
    def from_json(text: str) -> WorldSpec:
        """Read `to_json`'s text; an unknown or missing field is a SpecError that names it."""
        raw: dict[str, Any] = json.loads(text)
        try:
            raw["codec"] = CodecSpec(**{k: _tuples(v) for k, v in raw["codec"].items()})
            raw["generator"] = GeneratorSpec(**{k: _tuples(v) for k, v in raw["generator"].items()})
            raw["schedule"] = ScheduleTable(_tuples(raw["schedule"]["sigmas"]))
            raw["actions"] = tuple(raw["actions"])
            raw["mirror"] = _tuples(raw["mirror"])
            raw["heads"] = HeadsSpec(**raw["heads"]) if raw.get("heads") else None
            raw["camera"] = CameraSpec(**raw["camera"]) if raw.get("camera") else None
            raw["tracks"] = DragSpec(**raw["tracks"]) if raw.get("tracks") else None
            return WorldSpec(**raw)
        except (TypeError, KeyError) as error:
            raise SpecError(f"not a world spec of this version: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value

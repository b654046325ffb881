"""Families of public checkpoints: how one is recognised, and what every imported world offers once it is loaded.

A family is one module with three functions, and one line in FAMILIES (or an entry of a table such as wan_line.py):

    matches(shapes, config) -> spec | None     is this its file? config: the JSON beside the weights, or empty
    rename(weights) -> weights                 public names to the module's, parts that play needs not left out
    build(spec) -> a Playable nn.Module        no weights yet; it is called on the meta device
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from worldmodel.condition.buttons import Button, numbers
from worldmodel.condition.start_picture import ClipVision
from worldmodel.errors import CheckpointError
from worldmodel.families.loading import load_strictly

State = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
StateShapes = dict[str, tuple[tuple[int, ...], torch.dtype]]  # name: shape for one player, on axis 0; and type


@dataclass(frozen=True)
class About:
    """What a host has to know of a world."""

    title: str
    tick_hz: float
    height: int  # pixels
    width: int
    buttons: tuple[Button, ...]
    action_dim: int
    noise_shape: tuple[int, int, int, int]  # of one tick: draws, channels, rows, columns
    prompt_shape: tuple[int, int]  # rows and width of a prompt embedding; (1, 1) where there are no prompts

    def action(self, pressed: Tensor) -> Tensor:
        """Action vectors [batch, action_dim] of pressed buttons [batch, buttons], 0 or 1."""
        return numbers(self.buttons, pressed, self.action_dim)


class Playable(Protocol):
    """A world of any family. All it remembers is in the state, and a state of zeros is a start."""

    @property
    def about(self) -> About: ...

    def state_shapes(self) -> StateShapes:
        """Everything that the world remembers."""
        ...

    def __call__(self, state: State, action: Tensor, prompt: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """The tick: uint8 [batch, height, width, 3] and the state after it."""
        ...

    def recache(self, state: State, prompt: Tensor) -> State:
        """The state under another prompt."""
        ...

    def start_from(self, picture: Tensor, encoder: ClipVision | None) -> State:
        """What a state knows that starts from a picture [1, 3, height, width] in [−1, 1]; the rest of it is zero.

        encoder: of image tokens, where the family attends to such.
        """
        ...


@dataclass(frozen=True)
class Family:
    """Where a family comes from, and what knows it: a module, or an object in one as "module:object"."""

    title: str
    source: str
    licence: str
    at: str

    @property
    def reader(self) -> Reader:
        module, _, name = self.at.partition(":")
        found = import_module(f"worldmodel.families.{module}")
        return cast("Reader", getattr(found, name) if name else found)

    def matches(self, shapes: Shapes, config: Mapping[str, Any]) -> Any:
        return self.reader.matches(shapes, config)


class Reader(Protocol):
    """The three functions of a family."""

    def matches(self, shapes: Shapes, config: Mapping[str, Any]) -> Any: ...
    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def build(self, spec: Any) -> nn.Module: ...


LARGEST_SIZE = 1 << 16  # heads, rows, columns
STATED = "worldloop"  # in config: {"family": …}, of checkpoints trained here, which names and wrapping do not tell
APACHE = "Apache-2.0"
FAMILIES: dict[str, Family] = {  # the more particular before the more general
    "matrix_game2": Family("Matrix-Game 2", "github.com/SkyworkAI/Matrix-Game", "MIT", "matrix_game2"),
    "minwm": Family("minWM", "github.com/shengshu-ai/minWM", APACHE, "minwm"),
    "lingbot_world": Family("LingBot-World", "arXiv:2601.20540", APACHE, "lingbot_world"),
    "motion_stream": Family("MotionStream", "arXiv:2511.01266", "of whoever trained the weights", "motion_stream"),
    "longlive": Family(
        "LongLive",
        "arXiv:2509.22622",
        "Apache-2.0 since November 2025 (its first weights were published as CC BY-NC 4.0)",
        "wan_line:longlive",
    ),
    "rolling_forcing": Family("Rolling Forcing", "arXiv:2509.25161", "academic use only", "wan_line:rolling_forcing"),
    "causal_forcing": Family("Causal Forcing", "arXiv:2602.02214, 2605.15141", APACHE, "wan_line:causal_forcing"),
    "reward_forcing": Family("Reward Forcing", "arXiv:2512.04678", APACHE, "wan_line:reward_forcing"),
    "self_forcing": Family("Self-Forcing", "arXiv:2506.08009", APACHE, "wan_line:self_forcing"),
    "wan21": Family("Wan 2.1 T2V", "arXiv:2503.20314", APACHE, "wan_line:wan21"),
    "diamond": Family("DIAMOND (Atari)", "arXiv:2405.12399", "MIT", "diamond"),
    "open_oasis": Family("Open-Oasis 500M", "github.com/etched-ai/open-oasis", "MIT", "open_oasis"),
    "waypoint": Family("Waypoint-1", "huggingface.co/Overworld/Waypoint-1-Small", "Apache-2.0", "waypoint"),
}


def whole_number(config: Mapping[str, Any], name: str, default: int) -> int:
    """A size that stands in the JSON beside the weights, or was given."""
    found = config.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 < found <= LARGEST_SIZE:
        raise CheckpointError(f"config: {name} must be a whole number from 1 to {LARGEST_SIZE}: got {found!r}")
    return found


def recognise(shapes: Shapes, config: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """The family that a checkpoint's keys and shapes belong to, and the spec they describe.

    config: may say the family itself, see `STATED`; then no other is asked.
    """
    asked = _Asked(shapes)
    for name, family in _asked_for(config).items():
        with _whose(asked, where):
            spec = family.matches(asked, config)
        if spec is not None:
            return name, spec
    first = ", ".join(sorted(shapes)[:4])
    raise CheckpointError(
        f"{where}: of no known family ({', '.join(_asked_for(config))}); its {len(shapes)} keys begin with {first}"
    )


def stated(config: Mapping[str, Any]) -> str:
    """The family that config says, empty if it says none."""
    own = config.get(STATED)
    return str(own.get("family", "")) if isinstance(own, Mapping) else ""


def _asked_for(config: Mapping[str, Any]) -> dict[str, Family]:
    name = stated(config)
    if name and name not in FAMILIES:
        raise CheckpointError(f"config: no family {name!r}; there are {', '.join(FAMILIES)}")
    return {name: FAMILIES[name]} if name else FAMILIES


class _Asked(Mapping[str, tuple[int, ...]]):
    """Shapes that remember whose was asked for last."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes, self.last = shapes, ""

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            self.last = name
        return self.shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@contextmanager
def _whose(asked: _Asked, where: str) -> Iterator[None]:
    """Sizes are read from a stranger's shapes, which may be anything: name the one that no size could be read from."""
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{where}: {error} is missing, its sizes cannot be known") from error
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        shape = list(asked.shapes.get(asked.last, ()))
        raise CheckpointError(f"{where}: '{asked.last}' has shape {shape}: no size can be read from it") from error


def build(name: str, spec: Any, weights: Mapping[str, Tensor], where: str) -> Playable:
    """The world of a family with these weights, which must fit one to one."""
    world = outline(name, spec)
    load_strictly(world, FAMILIES[name].reader.rename(weights), where)
    return cast("Playable", world.eval().requires_grad_(False))


def outline(name: str, spec: Any) -> nn.Module:
    """The Playable of a family without its weights, on the meta device: nothing of their size is allocated."""
    try:
        with torch.device("meta"):
            world: nn.Module = FAMILIES[name].reader.build(spec)
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"the shapes describe no {FAMILIES[name].title} that can be built: {error}") from error
    return world


def zero_state(world: Playable, batch: int, device: torch.device | str = "cpu") -> State:
    """The state of players who have seen nothing."""
    shapes = world.state_shapes().items()
    return {name: torch.zeros(batch, *shape[1:], dtype=dtype, device=device) for name, (shape, dtype) in shapes}

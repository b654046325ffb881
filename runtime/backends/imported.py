"""Play a world imported from a public checkpoint in a session: torch, on any device, in the weights' own type.

    world, backend = imported("my-world", playable, hash=…)
    session = Session(world, backend=backend, seed=7)

The state stays where torch keeps it; it becomes numpy arrays only when a snapshot asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from runtime import encoder_folder
from runtime.backends import check_precision
from runtime.errors import BackendError, PromptError, WorldFileError
from runtime.manifest import Action, Manifest, TensorSpec
from runtime.world import State, World
from worldmodel.families.checkpoint import Found

if TYPE_CHECKING:
    from worldmodel.families.family import Playable

Encoder = Callable[[str], Tensor]  # text to prompt embedding [1, rows, dim]


def imported(
    name: str, playable: Playable, *, hash: str, licence: str, device: str = "cpu", encoder: Encoder | None = None
) -> tuple[World, ImportedBackend]:
    """The session's view of a loaded world. hash: of its weights, so that a snapshot finds its world again.

    encoder: makes prompt embeddings; without one, a world that takes prompts knows only the empty text.
    """
    about = playable.about
    manifest = Manifest(
        name=name,
        title=about.title,
        tick_hz=about.tick_hz,
        height=about.height,
        width=about.width,
        preview=False,
        licence=licence,
        credits=about.title,
        trained_on="",
        actions=tuple(Action(button.name, button.keys) for button in about.buttons),
        prompts=(),
        default_prompt="",
        default_start="",
        state={key: TensorSpec(shape, _numpy_type(dtype)) for key, (shape, dtype) in playable.state_shapes().items()},
        noise=about.noise_shape,
        prompt=about.prompt_shape,
        graphs={},
        starts=(),
        files={},
    )
    return World(manifest, hash), ImportedBackend(playable, torch.device(device), encoder)


def load_family(
    world: World, threads: int, precision: str, players: int, device: torch.device | None = None
) -> ImportedBackend:
    """The backend of a world file that `worldloop import` wrote. device: the CPU, if none is given."""
    from export.family_world import WEIGHTS
    from worldmodel.families.family import build, recognise

    check_precision("torch", precision, ("fp32", "bf16"))
    if players != 1:
        raise BackendError(
            f"world {world.manifest.name!r} is played by one player a session: its blocks start together"
        )
    spec = world.manifest.spec or {}
    config = dict(spec.get("config", {}))
    config["found"] = Found.from_json(config.get("found", {}))
    if WEIGHTS not in world.manifest.files:
        raise WorldFileError(f"{world.path}: holds no {WEIGHTS}: import it again")
    weights = load_safetensors(world.read(WEIGHTS))
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    family, described = recognise(shapes, config, str(world.path))
    if family != spec.get("family"):
        raise WorldFileError(f"{world.path}: says it is {spec.get('family')} and holds {family}: import it again")
    torch.set_num_threads(threads)
    playable, device = build(family, described, weights, str(world.path)), device or torch.device("cpu")
    cast(torch.nn.Module, playable).to(device)
    encoder = _encoder(world, config, playable.about.prompt_shape)
    return ImportedBackend(playable, device, encoder, name="torch" if device.type == "cpu" else f"torch-{device.type}")


def _encoder(world: World, config: Mapping[str, Any], shape: tuple[int, int]) -> Encoder | None:
    """The text encoder that the world file names. One that is not there is only missed when a prompt is typed."""
    noted, path = config.get("text_encoder"), world.path
    if not isinstance(noted, str) or path is None:
        return None
    folder = encoder_folder.found(noted, path)
    if folder is not None:
        from worldmodel.prompt.umt5 import Umt5

        return Umt5.load(folder, *shape)

    def missing(text: str) -> Tensor:
        raise PromptError(encoder_folder.missed(noted, path))

    return missing


@dataclass(frozen=True)
class ImportedBackend:
    """Ticks a Playable. Its state is made of `Kept` tensors; numpy arrays are taken too."""

    playable: Playable
    device: torch.device
    encoder: Encoder | None = None
    players: int = 1
    name: str = "torch"

    @property
    def precision(self) -> str:
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(self._dtype, "fp32")

    @property
    def threads(self) -> int:
        return torch.get_num_threads()

    @torch.inference_mode()
    def tick(
        self, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        pressed, embedding, noises = (self._tensor(array, self._dtype) for array in (action, prompt, noise))
        frame, after = self.playable(self._inside(state), self.playable.about.action(pressed), embedding, noises)
        return frame.cpu().numpy(), self._outside(after)

    @torch.inference_mode()
    def recache(self, state: State, prompt: np.ndarray) -> State:
        return self._outside(self.playable.recache(self._inside(state), self._tensor(prompt, self._dtype)))

    def embed(self, text: str) -> np.ndarray:
        shape = (1, *self.playable.about.prompt_shape)
        if not text:
            return np.zeros(shape, np.float32)
        if shape == (1, 1, 1):
            raise PromptError(f"{self.playable.about.title} takes no prompts")
        if self.encoder is None:
            raise PromptError(f"{self.playable.about.title} was loaded without its text encoder: prompts need one")
        return self.encoder(text).float().cpu().numpy()

    @property
    def _dtype(self) -> torch.dtype:
        return next(cast(torch.nn.Module, self.playable).parameters()).dtype

    def _inside(self, state: State) -> dict[str, Tensor]:
        types = {name: dtype for name, (_, dtype) in self.playable.state_shapes().items()}
        return {name: self._tensor(array, types[name]) for name, array in state.items()}

    def _tensor(self, array: Any, dtype: torch.dtype) -> Tensor:
        tensor = array.tensor if isinstance(array, Kept) else torch.from_numpy(np.array(array))
        return tensor.to(self.device, dtype)

    def _outside(self, state: Mapping[str, Tensor]) -> State:
        return cast(State, {name: Kept(tensor) for name, tensor in state.items()})


@dataclass(frozen=True)
class Kept:
    """A tensor of the state, as much of a numpy array as a snapshot needs."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        return _numpy_type(self.tensor.dtype)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        tensor = self.tensor.float() if self.tensor.dtype == torch.bfloat16 else self.tensor
        return np.array(tensor.cpu().numpy(), dtype=dtype, copy=True)


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    """numpy knows no bfloat16: outside torch such numbers are float32, which holds them exactly."""
    return np.dtype("float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch."))

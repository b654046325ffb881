"""Backends: what runs a world's networks. One file each, one line here.

A backend is pure: it holds weights and options, takes a state and gives the next. The session keeps the latest.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from runtime.cuda import gpu_name
from runtime.errors import BackendError
from runtime.machine import cores, flops_of_a_thread
from runtime.world import State, World


class Backend(Protocol):
    """name, precision (of the matrix products) and threads are facts for reports. players: size of every axis 0."""

    @property
    def name(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def players(self) -> int: ...

    def tick(
        self, state: State, action: np.ndarray, prompt: np.ndarray, noise: np.ndarray, into: State
    ) -> tuple[np.ndarray, State]:
        """The next frame and the state after it. Equal arguments give equal results.

        action: float32 [players, actions]. prompt: float32 [players, tokens, dim]. noise: float32 [players, passes,
        channels, rows, columns]. into: arrays that may be overwritten to hold the new state, none of them part of
        `state`; an empty dict allocates. Gives a new uint8 [players, height, width, 3], and a state that shares what
        did not change.
        """

    def recache(self, state: State, prompt: np.ndarray) -> State:
        """Renew what the state remembers of the prompt, in new arrays; what does not depend on it is shared."""

    def embed(self, text: str) -> np.ndarray:
        """The prompt embedding of a text, float32 [1, tokens, dim]."""


# name: (module with `load(world, threads, precision, players) -> Backend`, or module:function, the package it needs)
BACKENDS: dict[str, tuple[str, str]] = {  # the best first
    "onnxruntime-cuda": ("runtime.backends.onnxruntime_cuda", "onnxruntime-gpu"),
    "openvino": ("runtime.backends.openvino", "openvino"),
    "onnxruntime": ("runtime.backends.onnxruntime", "onnxruntime"),
    "torch-cuda": ("runtime.backends.torch_cuda", "torch"),  # before torch, for imported worlds: they have no graphs
    "torch": ("runtime.backends.torch", "torch"),
    # From here on only by name: engines are built, or programs compiled, for minutes.
    "onnxruntime-tensorrt": ("runtime.backends.onnxruntime_tensorrt", "onnxruntime-gpu"),
    "tensorrt": ("runtime.backends.tensorrt", "tensorrt"),
    "tensorrt-rtx": ("runtime.backends.tensorrt:load_rtx", "tensorrt-rtx"),
    "mock": ("runtime.backends.mock", "numpy"),
}
ON_GPU = {"onnxruntime-cuda", "torch-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt-rtx"}


def load_backend(
    world: World, name: str = "auto", *, threads: int | None = None, precision: str = "auto", players: int = 1
) -> Backend:
    """Make the world ready to tick. `auto` takes the best backend that can play this world on this machine.

    A GPU that was asked for by name and cannot be used is an error; with `auto` the next backend plays, and the log
    says so in one line.
    """
    known = installed_backends(world)
    if name == "auto":
        return _load_best(world, known, threads, precision, players)
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}; there are: {', '.join(BACKENDS)}")
    _, package = BACKENDS[name]
    if not installed(package):
        raise BackendError(f"backend {name!r} is not installed: pip install {package}")
    if name not in known:
        able = ", ".join(usable_backends(world))
        raise BackendError(f"backend {name!r} cannot play world {world.manifest.name!r}; use one of: {able}")
    return _load(world, name, threads, precision, players)


def _load_best(world: World, names: list[str], threads: int | None, precision: str, players: int) -> Backend:
    """The first that loads. Only a GPU may fail: what the CPU cannot play is wrong with the world, or with the wish."""
    for name, following in zip(names, [*names[1:], ""], strict=True):
        try:
            return _load(world, name, threads, precision, players)
        except BackendError as error:
            if name not in ON_GPU or not following:
                raise
            notice(f"playing on {following}, not on {name}: {error}")
    raise BackendError(f"no backend is installed for world {world.manifest.name!r}: pip install onnxruntime")


def _load(world: World, name: str, threads: int | None, precision: str, players: int) -> Backend:
    module, _, function = BACKENDS[name][0].partition(":")
    load: Callable[[World, int, str, int], Backend] = getattr(importlib.import_module(module), function or "load")
    return load(world, threads or default_threads(world, players), precision, players)


def installed_backends(world: World) -> list[str]:
    """Backends that are installed for this kind of world, the best first."""
    able = {"mock": world.path is None, **dict.fromkeys(("torch", "torch-cuda"), world.manifest.spec is not None)}
    return [
        name
        for name, (_, package) in BACKENDS.items()
        if able.get(name, "tick" in world.manifest.graphs) and installed(package)
    ]


def usable_backends(world: World) -> list[str]:
    """Those of them that this machine has the hardware for."""
    return [name for name in installed_backends(world) if name not in ON_GPU or gpu_name()]


def notice(text: str) -> None:
    """One line for whoever starts a world; a host may silence the logger."""
    logging.getLogger("worldloop").warning("worldloop: %s", text)


def installed(package: str) -> bool:
    """package: as it is imported, or, with a dash, as it is called on the package index."""
    if "-" not in package:
        return importlib.util.find_spec(package) is not None
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def default_threads(world: World, players: int = 1) -> int:
    """Of one player as many as a tick needs for half its period, of a batch all.

    Threads of one tick wait for each other, the more so where other programs use the cores: two are quicker than one
    alone, and take twice as long beside two busy programs (docs/export.md). By what is known of the CPU, not by a
    clock: another number of threads may sum in another order, and a game played again shall be the same bytes.
    """
    flops = world.manifest.flops_per_tick
    if players > 1 or not flops:
        return most_threads()
    return max(1, min(most_threads(), math.ceil(2 * flops * world.manifest.tick_hz / flops_of_a_thread())))


def most_threads() -> int:
    """The cores that this process may use, at most 4: worlds are small, and more threads wait for each other."""
    return min(cores(), 4)


def check_precision(backend: str, precision: str, known: tuple[str, ...]) -> None:
    if precision != "auto" and precision not in known:
        raise BackendError(
            f"backend {backend!r} has no precision {precision!r} on this machine; it has: {', '.join(known)}"
        )

"""Blocks of an imported world, each decoded while the next one is denoised: more pictures per second, one block later.

    for pictures in overlapped(world, state, blocks, Aside(device)): …

What a session does not want: a key would be heard a block later. On a GPU the decoder runs in a stream of its own, on
the CPU in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import cast

import torch
from torch import Tensor

from worldmodel.families.family import State
from worldmodel.families.wan_world import WanWorld

Decoded = tuple[Tensor, State]


def overlapped(
    world: WanWorld,
    state: State,
    blocks: Iterable[tuple[Tensor, Tensor]],
    aside: Callable[[Callable[[], Decoded]], Callable[[], Decoded]],
) -> Iterator[Tensor]:
    """The shown pictures of each block, uint8 [batch, pictures, height, width, 3]; the same as the world's own.

    state: with a prompt and all pictures shown. blocks: an action [batch, action_dim] and noise for each.
    aside: begins a piece of work beside what is done next, and gives what waits for its result.
    """
    memory = {name.removeprefix("codec."): part for name, part in state.items() if name.startswith("codec.")}
    waiting: Callable[[], Decoded] | None = None
    left = 0
    for action, noise in blocks:
        latents, state = world.denoise(state, action, noise)
        if waiting is not None:
            pictures, memory = waiting()
            yield pictures[:, world.pictures - left :]
        left = int(state["queue.left"][0])
        waiting = aside(partial(world.decode, latents, memory))
    if waiting is not None:
        yield waiting()[0][:, world.pictures - left :]


class Aside:
    """Beside the current stream of a GPU, or beside this thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1)

    def __call__(self, work: Callable[[], Decoded]) -> Callable[[], Decoded]:
        if self._stream is None:
            return self._worker.submit(torch.no_grad()(work)).result
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            made = work()
        return partial(self._joined, work, made)

    def _joined(self, work: Callable[[], Decoded], made: Decoded) -> Decoded:
        """work: held until now, as its latents must not be given back before they are decoded."""
        torch.cuda.current_stream(self._device).wait_stream(cast(torch.cuda.Stream, self._stream))
        return made

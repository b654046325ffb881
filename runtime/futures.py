"""How far each backend and precision carries a game from the torch reference: in one tick, in a hundred, in a thousand.

A world is chaotic: in the end any rounding makes another game. So what counts late is not the distance of frames but
whether the other game looks like one of the same world: the distance of frame statistics, in units of what another
seed makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.backends import usable_backends
from runtime.errors import BackendError
from runtime.noise import tick_noise
from runtime.parity import pattern, psnr_of, relative_error
from runtime.prompt import embed_prompt
from runtime.session import Session
from runtime.world import State, World

TICKS = 1000
NEAR = 100  # ticks whose frames are compared one by one
APART = 20.0  # dB; below that the futures are different ones
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
CELLS = 4  # per side, of the grid that statistics are taken on


class Future:
    """One game beside the reference."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.errors: list[float] = []
        self.single: list[float] = []
        self.psnr: list[float] = []
        self.late: list[np.ndarray] = []

    def row(self, expected: list[np.ndarray], other_seed: float) -> dict[str, Any]:
        backend = self.session.backend
        return {
            "backend": backend.name,
            "precision": backend.precision,
            "tick_error": float(np.mean(self.errors)),
            "tick_psnr": round(float(np.mean(self.single)), 1),
            "psnr_50": round(float(np.mean(self.psnr[:50])), 1),
            "psnr_100": round(float(np.mean(self.psnr[:NEAR])), 1),
            "apart": next((tick + 1 for tick, psnr in enumerate(self.psnr) if psnr < APART), None),
            "distance": round(distance(self.late, expected) / other_seed, 2),
        }


def futures(world: World, ticks: int = TICKS, threads: int | None = None) -> list[dict[str, Any]]:
    """A row for everything that can play the world here.

    tick_error, tick_psnr: of the newest latent and of the frame after one tick from the reference's state, mean over
    NEAR ticks. psnr_50, psnr_100: of free futures, mean. apart: their first tick below APART dB. distance: of frame
    statistics in the last half; 1 is that of torch float32 with another seed.
    """
    reference, reseeded = (Future(Session(world, backend="torch", seed=seed, threads=threads)) for seed in (0, 1))
    others = [Future(session) for session in sessions(world, threads)]
    manifest = world.manifest
    embedding = embed_prompt(reference.session.backend, reference.session.prompt)
    for tick in range(ticks):
        keys, before = pattern(manifest.action_names, tick), reference.session.peek()
        frame = reference.session.tick(keys, graph="tick")
        after = reference.session.peek()
        noise = tick_noise(0, tick, (1, *manifest.noise))
        for future in others:
            if tick < NEAR:
                made, state = future.session.backend.tick(before, world.action(keys), embedding, noise, {})
                future.errors.append(relative_error(newest(state), newest(after)))
                future.single.append(psnr_of(made[0], frame))
            future.psnr.append(psnr_of(future.session.tick(keys, graph="tick"), frame))
        reseeded.session.tick(keys)
        if tick >= ticks // 2:
            for future in (reference, reseeded, *others):
                assert future.session.frame is not None, "it has just ticked"
                future.late.append(statistics(future.session.frame))
    other_seed = distance(reseeded.late, reference.late)
    return [future.row(reference.late, other_seed) for future in others]


def newest(state: State) -> np.ndarray:
    """The newest latent of a state, wherever that lies."""
    return np.asarray(state["latents"])[:, -1]


def sessions(world: World, threads: int | None) -> Iterator[Session]:
    for name in usable_backends(world):
        for precision in PRECISIONS:
            if name == "torch":  # in bf16 it takes a minute to compile, see `worldloop bench`
                continue
            try:
                yield Session(world, backend=name, precision=precision, threads=threads)
            except BackendError:  # not on this machine, or not in this file
                continue


def statistics(frame: np.ndarray) -> np.ndarray:
    """Mean and spread of each colour in each cell of a grid. frame: uint8 [height, width, 3]."""
    height, width, _ = frame.shape
    rows, columns = height // CELLS * CELLS, width // CELLS * CELLS
    cells = frame[:rows, :columns].astype(np.float32).reshape(CELLS, rows // CELLS, CELLS, columns // CELLS, 3)
    return np.concatenate([cells.mean((1, 3)).ravel(), cells.std((1, 3)).ravel()])


def distance(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Of the means over time, in units of how much each number moves in either game."""
    a, b = np.stack(found), np.stack(expected)
    spread = np.sqrt((a.var(0) + b.var(0)) / 2) + 1e-3
    return float(np.sqrt(np.square((a.mean(0) - b.mean(0)) / spread).mean())) or 1e-9


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    head = [
        "| backend | precision | error of a tick | frame of a tick | 50 ticks | 100 ticks | apart | 1,000 ticks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(
        head
        + [
            f"| {row['backend']} | {row['precision']} | {row['tick_error']:.1e} | {row['tick_psnr']} dB "
            f"| {row['psnr_50']} dB | {row['psnr_100']} dB | {row['apart'] or 'never'} | {row['distance']} |"
            for row in rows
        ]
    )

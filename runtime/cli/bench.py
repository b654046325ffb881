"""`worldloop bench`: how fast a world ticks here, beside what this machine's matrix products reach."""

from __future__ import annotations

import json as json_library
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from runtime.backends import ON_GPU, Backend, default_threads, load_backend, usable_backends
from runtime.backends.graphs import EngineMaker, aligned_zeros
from runtime.cli.options import BackendName, Json, Precision, Seed, Threads, WorldName, finish, milliseconds
from runtime.cuda import gpu, gpu_name
from runtime.errors import BackendError
from runtime.machine import cores, cpu_name, peak_mb, process_age_s
from runtime.noise import tick_noise
from runtime.world import DEFAULT_WORLD, State, World

WARM_UP = 20  # ticks
COMPARED = {"torch": ("fp32", "bf16")}  # precisions of a backend that `--backends` shows; of others, the best one
# Until who measures is gone, however that ended: nobody else would stop it.
BUSY = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""

app = typer.Typer(add_completion=False)


@app.command()
def command(
    world: WorldName = DEFAULT_WORLD,
    ticks: Annotated[int, typer.Option(help="ticks to measure, after a warm-up", min=1)] = 1000,
    backends: Annotated[
        str | None, typer.Option(help="all, or names with commas; each in a process of its own")
    ] = None,
    players: Annotated[int, typer.Option(help="players in one batch", min=1, max=1024)] = 1,
    busy: Annotated[
        int, typer.Option(help="measure once more beside this many programs that keep a core busy", min=0, max=1024)
    ] = 0,
    seed: Seed = 0,
    threads: Threads = None,
    backend: BackendName = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Measure ticks (decoding included), the first frame, memory, and the share of the matrix-product peak."""
    opened = World.open(world)
    if backends is None:
        results = [measure(opened, backend, ticks, players, busy, seed, threads, precision)]
    else:
        names = usable_backends(opened) if backends == "all" else backends.split(",")
        results = [
            in_own_process(world, name, ticks, players, busy, seed, threads, one)
            for name in names
            for one in (COMPARED.get(name, ("auto",)) if precision == "auto" else (precision,))
        ]
    report = {
        "world": opened.manifest.name,
        "world_hash": opened.hash,
        "tick_hz": opened.manifest.tick_hz,
        "ticks": ticks,
        "machine": {"cpu": cpu_name(), "cores": cores(), "gpu": gpu_name()},
        "threads": threads or default_threads(opened, players),
        "results": results,
    }
    finish(report, json, text(report))


def measure(
    world: World, name: str, ticks: int, players: int, busy: int, seed: int, threads: int | None, precision: str
) -> dict[str, Any]:
    """One backend, in this process. The first frame counts from here: reading the file, compiling, one tick."""
    taken = gpu().used_mb() if gpu_name() else 0.0
    begun = time.perf_counter()
    backend = load_backend(world, name, threads=threads, precision=precision, players=players)
    game = Game(world, backend, seed)
    game.play(1, "first frame")
    first_frame_s, cold_start_s = time.perf_counter() - begun, process_age_s()
    game.play(WARM_UP - 1, "warm-up")
    tick_s = game.play(ticks, backend.name)
    with busy_programs(busy):
        beside_s = game.play(ticks, f"{backend.name}, beside {busy} others") if busy else []
    used = peak_mb()  # before what follows takes memory of its own
    if players > 1:
        single = Game(world, load_backend(world, name, threads=threads, precision=precision), seed)
        single.play(WARM_UP, "warm-up of one player")
        alone_s = single.play(ticks, f"{backend.name}, one player")
    manifest, median = world.manifest, float(np.median(tick_s))
    flops = manifest.flops_per_tick
    peak = peak_of(backend) if flops else None
    report = {
        "backend": backend.name,
        "precision": backend.precision,
        "threads": backend.threads,
        "players": players,
        "tick_ms": milliseconds(tick_s),
        "late_share": round(float(np.mean(np.array(tick_s) > 1 / manifest.tick_hz)), 4),
        "ticks_per_s": round(players / median, 1),
        "first_frame_s": round(first_frame_s, 3),
        "cold_start_s": None if cold_start_s is None else round(cold_start_s, 2),
        "peak_mb": used,
        "gpu_mb": round(gpu().used_mb() - taken, 1) if backend.name in ON_GPU else None,
        "flops_per_tick": flops,
        "peak_flops": peak,
        "peak_share": round(players * flops / median / peak, 4) if flops and peak else None,
    }
    if players > 1:
        gain = players * float(np.median(alone_s)) / median
        report["alone"] = {"threads": single.backend.threads, "tick_ms": milliseconds(alone_s), "gain": round(gain, 2)}
    return report | ({"busy": {"programs": busy, "tick_ms": milliseconds(beside_s)}} if busy else {})


class Game:
    """Players who press keys at random."""

    def __init__(self, world: World, backend: Backend, seed: int) -> None:
        self.world, self.backend, self.seed = world, backend, seed
        self.tick, self.rng = 0, np.random.default_rng(seed)
        self.state, self.prompt = beginning(world, backend)
        self.spare: State = {}

    def play(self, ticks: int, what: str) -> list[float]:
        """Seconds of each tick, its noise included."""
        manifest, players, seconds = self.world.manifest, self.backend.players, []
        for _ in track(range(ticks), description=what, console=Console(stderr=True), transient=True):
            action = (self.rng.random((players, len(manifest.actions))) < 0.3).astype(np.float32)
            at = time.perf_counter()
            noise = tick_noise(self.seed, self.tick, (players, *manifest.noise))
            _, after = self.backend.tick(self.state, action, self.prompt, noise, self.spare)
            self.spare = {key: array for key, array in self.state.items() if after[key] is not array}
            self.state = after
            self.tick += 1
            seconds.append(time.perf_counter() - at)
        return seconds


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Other programs, each of which wants a core."""
    programs = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def beginning(world: World, backend: Backend) -> tuple[State, np.ndarray]:
    """The state of the default start for every player, and the prompt's embedding."""
    manifest = world.manifest
    start = manifest.start(None)
    prompt = np.repeat(backend.embed(start.prompt if start else manifest.default_prompt), backend.players, axis=0)
    state = {key: aligned_zeros((backend.players, *spec.shape[1:]), spec.dtype) for key, spec in manifest.state.items()}
    for key, tensor in world.start_state().items():
        state[key][...] = tensor
    return backend.recache(state, prompt), prompt


def peak_of(backend: Backend) -> float | None:
    """Of the CPU; a GPU's takes larger products than these, see benchmarks/gpu.py."""
    from runtime.matmul_peak import peak_flops

    maker: EngineMaker | None = getattr(backend, "maker", None)
    return peak_flops(maker) if maker and backend.name not in ON_GPU else None


def in_own_process(
    world: str, name: str, ticks: int, players: int, busy: int, seed: int, threads: int | None, precision: str
) -> dict[str, Any]:
    """So that one backend's memory and start do not count for another's."""
    options = {"--backend": name, "--ticks": ticks, "--players": players, "--busy": busy, "--seed": seed}
    options |= {"--precision": precision}
    if threads:
        options["--threads"] = threads
    words = [str(word) for pair in options.items() for word in pair]
    program = "from runtime.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "bench", world, "--json", *words], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"backend {name!r} failed"]
        raise BackendError(said[-1].removeprefix("worldloop: "))
    return json_library.loads(done.stdout)["results"][0]


def text(report: dict[str, Any]) -> str:
    machine, limit_ms = report["machine"], 1000 / report["tick_hz"]
    lines = [
        f"{report['world']} on {machine['cpu']}, {machine['cores']} cores, threads: {report['threads']}; "
        f"a tick may take {limit_ms:.1f} ms"
    ]
    for result in report["results"]:
        ms = result["tick_ms"]
        share = f", {result['peak_share']:.1%} of the matrix-product peak" if result["peak_share"] else ""
        on_gpu = "" if result["gpu_mb"] is None else f" and {result['gpu_mb']} MB on the GPU"
        lines.append(
            f"  {result['backend']} {result['precision']}: p50 {ms['p50']} ms, p95 {ms['p95']}, p99 {ms['p99']}; "
            f"{result['ticks_per_s']} ticks/s, first frame {result['first_frame_s']} s "
            f"({result['cold_start_s']} s after the process began), {result['peak_mb']} MB"
            f"{on_gpu}{share}"
        )
        if "alone" in result:
            alone, players = result["alone"], result["players"]
            lines.append(
                f"    one player alone, threads: {alone['threads']}, p50 {alone['tick_ms']['p50']} ms; "
                f"{players} in one batch make {alone['gain']} times the ticks per second"
            )
        if "busy" in result:
            beside = result["busy"]["tick_ms"]
            lines.append(
                f"    beside {result['busy']['programs']} busy programs: p50 {beside['p50']} ms "
                f"({beside['p50'] / ms['p50']:.1f} times as long), p95 {beside['p95']}, p99 {beside['p99']}"
            )
    return "\n".join(lines)

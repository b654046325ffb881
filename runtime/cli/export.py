"""`worldloop export`: pack a trained world into a world file and prove that it plays the same; give it a graph in int8;
build engines for NVIDIA GPUs of it; write the graph of an imported world."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.backends import ON_GPU, usable_backends
from runtime.backends.graphs import TICKS as TICKS_GRAPHS
from runtime.cli.options import Json, finish
from runtime.cuda import gpu_name
from runtime.engines import engine_of, engines_folder
from runtime.errors import CheckFailed, UsageError
from runtime.parity import PSNR_FLOOR, TICKS, TOLERANCE, compare_all
from runtime.session import Session
from runtime.world import World

if TYPE_CHECKING:
    from export.tensorrt import Engine

app = typer.Typer(add_completion=False)


@app.command()
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN|WORLD", help="folder of 'worldloop train'; with --to, a world")],
    card: Annotated[
        Path | None, typer.Option(help="TOML file: title, licence, prompts, starts, …; see export/pack.py")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="the world file (default: RUN/NAME.world), or the folder of engines")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="the generator's weights (default: RUN/world.safetensors)")
    ] = None,
    sigmas: Annotated[
        str,
        typer.Option(
            help="noise levels of a tick's passes, as '1 0.6 0.2' (default: those of the training); of frames in "
            "flight, the oldest first, as '0.25,0.5,0.75,1'"
        ),
    ] = "",
    storage: Annotated[str, typer.Option(help="of the weights: int8, fp16 or fp32")] = "int8",
    ticks: Annotated[int, typer.Option(help="ticks of the parity check", min=1)] = TICKS,
    to: Annotated[
        str,
        typer.Option(
            help="onnx: the world file of a RUN, the graph of an imported WORLD; int8: a WORLD with a calibrated graph "
            "for onnxruntime; tensorrt-rtx (needs no GPU), tensorrt: engines of a WORLD"
        ),
    ] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(
            help="of an engine: bf16 (default) or fp16; of an imported world's graph also fp32 (default: its own)"
        ),
    ] = None,
    players: Annotated[int, typer.Option(help="of an engine: players in one batch", min=1, max=1024)] = 1,
    json: Json = False,
) -> None:
    """Write NAME.world and compare its futures with the torch reference; exit code 1 if they differ too much."""
    if to == "int8":
        from runtime.int8 import add_int8

        opened = World.open(run)
        found = add_int8(opened, out or Path(f"{opened.manifest.name}.world"))
        finish(found, json, layers(found))
        return
    if to != "onnx":
        engines(World.open(run), to, precision or "bf16", players, out, json)
        return
    if run.is_file():
        opened = World.open(run)
        graph = imported_graph(opened, precision, out or Path(opened.manifest.name))
        size = sum(file.stat().st_size for file in (graph, graph.with_suffix(".safetensors")))
        finish(
            {"out": str(graph), "bytes": size},
            json,
            f"{graph}: {size / 1e6:.1f} MB with its weights, which lie beside it",
        )
        return
    if card is None:
        raise UsageError("--card is missing: a world file has a title, a licence, prompts, starts; see export/pack.py")
    from export.onnx import export_graphs
    from export.pack import load_world, pack, read_card

    begun = time.monotonic()
    told = read_card(card)
    world = load_world(run, weights, levels(sigmas))
    target = out or run / f"{world.spec.name}.world"
    print("worldloop: tracing the graphs, this takes half a minute", file=sys.stderr)
    graphs = export_graphs(world)
    world_hash = pack(world, told, graphs, target, storage)
    print(f"worldloop: {target} is written; comparing {ticks} ticks with torch", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder, "exact.world")
        pack(world, told, graphs, exact, "fp32", level=1)
        futures = judge(target, exact, ticks)
    report = {
        "out": str(target),
        "world_hash": world_hash,
        "bytes": target.stat().st_size,
        "seconds": round(time.monotonic() - begun, 1),
        "flops_per_tick": graphs.flops_per_tick,
        "storage": storage,
        "parity": futures,
    }
    finish(report, json, text(report))
    if failed := [future for future in futures if not future["ok"]]:
        raise CheckFailed(f"{target} plays another game than torch on {', '.join(f['backend'] for f in failed)}")


def imported_graph(world: World, precision: str | None, folder: Path) -> Path:
    """The steady block of an imported world, its weights beside it."""
    import torch

    from export.wan_onnx import steady_state, write_block
    from runtime.backends import most_threads
    from runtime.backends.imported import load_family
    from worldmodel.families.wan_world import WanWorld

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if precision is not None and precision not in types:
        raise UsageError(f"--precision {precision}: a graph is in one of {', '.join(types)}")
    if "family" not in (world.manifest.spec or {}):
        raise UsageError(
            f"{world.path} holds its graphs already; --to int8, tensorrt-rtx or tensorrt makes more of them"
        )
    playable = load_family(world, most_threads(), "auto", 1).playable
    if not isinstance(playable, WanWorld):
        raise UsageError(f"{world.manifest.title} is no Wan transformer: only such become graphs so far")
    if precision is not None:
        playable.to(types[precision])
    print("worldloop: playing until the cache is full, then tracing; large worlds take minutes", file=sys.stderr)
    like = next(playable.transformer.parameters())
    return write_block(playable, steady_state(playable, like.new_zeros(1, *playable.about.prompt_shape)), folder)


def engines(world: World, package: str, precision: str, players: int, out: Path | None, json: bool) -> None:
    """An engine of every graph that takes the state, or those that are there already."""
    from export.tensorrt import About, build, cached, load_package

    version = load_package(package).__version__
    folder = out or engines_folder()
    gpu = gpu_name() or "" if package == "tensorrt" else ""
    names = [name for name in (*TICKS_GRAPHS, "recache") if name in world.manifest.graphs]
    abouts = [About(world.hash, name, precision, players, package, version, gpu) for name in names or ["block"]]
    built: list[tuple[Path, Engine | None]] = []
    if names:
        with world.unpacked() as files:
            for one in abouts:
                built.append(engine_of(one, files / world.manifest.graphs[one.graph].file, folder))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            block = abouts[0]
            built.append(cached(block, folder, lambda: build(imported_graph(world, precision, Path(scratch)), block)))
    made: list[dict[str, Any]] = []
    for path, engine in built:
        about_it = {"layers": engine.types, "inputs": engine.inputs, "outputs": engine.outputs} if engine else {}
        made.append({"out": str(path), "bytes": path.stat().st_size, "built": engine is not None, **about_it})
    report = {"world_hash": world.hash, "package": package, "version": version, "engines": made}
    lines = (f"{one['out']}: {one['bytes'] / 1e6:.1f} MB, {'built' if one['built'] else 'was there'}" for one in made)
    finish(report, json, "\n".join(lines))


def layers(report: dict[str, Any]) -> str:
    """The table of `add_int8`."""
    lines = [f"{report['out']}: {report['bytes'] / 1e6:.1f} MB; {report['psnr']} dB over {TICKS} free ticks in int8"]
    for one in report["layers"]:
        apart = f", {one['apart']} channels kept apart" if one["int8"] and one["apart"] else ""
        lines.append(f"  {'int8   ' if one['int8'] else 'float32'} {one['error']:.1e}  {one['weight']}{apart}")
    return "\n".join(lines)


def levels(text: str) -> tuple[tuple[float, ...], ...]:
    """A row for each pass, the frames in flight in it, the oldest first."""
    try:
        return tuple(tuple(float(sigma) for sigma in word.split(",")) for word in text.split())
    except ValueError:
        raise UsageError(
            f"--sigmas {text!r}: write a number for each pass, as '1 0.6 0.2'; with frames in flight a list, the "
            "oldest first, as '0.25,0.5,0.75,1'"
        ) from None


def judge(shipped: Path, exact: Path, ticks: int) -> list[dict[str, Any]]:
    """Backends on the CPU: their arithmetic against torch with the same weights, their futures with exact ones."""
    world = World.open(shipped)
    names = [name for name in usable_backends(world) if name != "torch" and name not in ON_GPU]
    plain = [Session(world, backend=name, precision="fp32") for name in names]
    best = [Session(world, backend=name) for name in names]
    single = compare_all(Session(world, backend="torch"), plain, ticks)
    future = compare_all(Session(World.open(exact), backend="torch"), best, ticks)
    found = []
    for session, same, other in zip(best, single, future, strict=True):
        psnr = sum(other.psnr) / len(other.psnr)
        found.append({
            "backend": session.backend.name,
            "ok": same.worst <= TOLERANCE and psnr >= PSNR_FLOOR,
            "fp32_error": same.worst,
            "precision": session.backend.precision,
            "psnr_mean": round(psnr, 2),
            "psnr_worst": round(min(other.psnr), 2),
        })  # fmt: skip
    return found


def text(report: dict[str, Any]) -> str:
    lines = [f"{report['out']}: {report['bytes'] / 1e6:.1f} MB, {report['flops_per_tick'] / 1e9:.2f} GFLOP a tick"]
    for future in report["parity"]:
        lines.append(
            f"  {future['backend']}: float32 {future['fp32_error']:.1e} from torch; "
            f"as shipped ({report['storage']}, {future['precision']}) {future['psnr_mean']} dB, "
            f"worst {future['psnr_worst']} dB"
        )
    return "\n".join(lines)

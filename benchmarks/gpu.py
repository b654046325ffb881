"""What a GPU makes of the shipped world and of a Wan transformer of 1.3 billion parameters; under ten minutes.

    python benchmarks/gpu.py [--json] [--minutes 9]

The shipped world: a tick with decoding on torch, onnxruntime and TensorRT, each in a process of its own, as `worldloop
bench`. Wan: 832 × 480, four denoising steps and the commit, blocks of three latent frames, a window of twelve with a
sink of three, random weights, decoded by TAEHV; torch in bf16 and float8, and with each block decoded while the next
one is denoised; the block as a graph in fp16 on onnxruntime and TensorRT, its commit a pass of its own. Shares are of
what this GPU's bf16 matrix products reach in the same run. What does not run here, or for want of time, says so.
Without a GPU: one line, exit code 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from runtime.cuda import gpu  # noqa: E402
from runtime.errors import BackendError  # noqa: E402

WORLD, TICKS = "racer", 1000
BACKENDS = (("torch-cuda", "bf16"), ("onnxruntime-cuda", "fp16"), ("tensorrt", "fp16"), ("tensorrt", "bf16"),
            ("tensorrt-rtx", "fp16"), ("onnxruntime-tensorrt", "fp16"))  # fmt: skip
PRECISIONS = ("bf16", "fp8")
GRAPHS = ("onnxruntime-cuda", "tensorrt")  # what the Wan's block runs on as a graph
SIDES = (4096, 8192)  # of the matrices of the yardstick
BLOCKS = 12  # that are measured
CLI = "from runtime.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--minutes", type=float, default=9, help="when to stop")
    parser.add_argument("--part", help="one part, in this process: peak, wan-bf16, graph-tensorrt, …")
    arguments = parser.parse_args()
    try:
        card = gpu()
    except BackendError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        sys.exit(2)
    if arguments.part:
        print(json.dumps(part(arguments.part)))
        return
    until = time.monotonic() + 60 * arguments.minutes
    report: dict[str, Any] = {"gpu": card.name, "capability": list(card.capability)}
    report["peak_flops"] = in_process(own("peak"), until).get("flops")
    report["wan"] = [in_process(own(f"wan-{one}"), until) | {"precision": one} for one in PRECISIONS]
    report["world"] = [
        in_process(bench(name, precision), until) | {"backend": name, "precision": precision}
        for name, precision in BACKENDS
    ]
    report["graph"] = [in_process(own(f"graph-{one}"), until) | {"backend": one, "precision": "fp16"} for one in GRAPHS]
    print(json.dumps(report) if arguments.json else text(report))


def own(name: str) -> list[str]:
    return [str(Path(__file__).resolve()), "--part", name]


def bench(name: str, precision: str) -> list[str]:
    return ["-c", CLI, "bench", WORLD, "--json", "--ticks", str(TICKS), "--backend", name, "--precision", precision]


def in_process(arguments: list[str], until: float) -> dict[str, Any]:
    """The JSON object that a program prints last, or {"error": what it said}."""
    left = until - time.monotonic()
    if left <= 0:
        return {"error": "no time left"}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=left, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": "no time left"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": said[-1].removeprefix("worldloop: ")}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def part(name: str) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU")
    torch.set_grad_enabled(False)
    if name == "peak":
        return {"flops": max(matmul_flops(side) for side in SIDES)}
    if name.startswith("graph-"):
        with tempfile.TemporaryDirectory() as folder:
            return play_graph(wan_spec(), name.removeprefix("graph-"), Path(folder), BLOCKS)
    precision = name.removeprefix("wan-")
    return play_wan(wan_spec(), precision, torch.device("cuda"), BLOCKS, compiled=True)


def matmul_flops(side: int) -> float:
    """Operations per second of a bf16 product of square matrices, the best of ten."""
    import torch

    x = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    fastest = float("inf")
    for _ in range(10):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        x @ x
        ended.record()
        torch.cuda.synchronize()
        fastest = min(fastest, begun.elapsed_time(ended) / 1000)
    return 2 * side**3 / fastest


def wan_spec() -> Any:
    """LongLive's shape: what it was published with, arXiv:2509.22622."""
    from worldmodel.codec.taehv import TaehvSpec
    from worldmodel.families.wan_line import longlive
    from worldmodel.families.wan_transformer import WanSpec
    from worldmodel.families.wan_world import WanWorldSpec

    transformer = WanSpec(
        dim=1536, ffn_dim=8960, heads=12, layers=30, freq_dim=256, in_channels=16, out_channels=16, text_dim=4096
    )
    return WanWorldSpec("Wan 1.3B", transformer, longlive.cache, longlive.schedule, codec=TaehvSpec())


def play_wan(spec: Any, precision: str, device: Any, blocks: int, compiled: bool) -> dict[str, Any]:
    """Play a world with random weights, picture by picture; a block is what its pictures take together."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from export.fp8 import narrow
    from export.overlapped import Aside, overlapped

    begun = time.perf_counter()
    world = random_world(spec, device)
    if precision == "fp8" and not narrow(world.transformer.blocks):
        raise SystemExit("no layer of this world takes float8")
    if compiled:
        for layer in world.transformer.blocks:
            layer.compile()
    player = Player(world, device)
    player.block()
    first_frame_s = time.perf_counter() - begun  # of the stream's first block: compiling included
    while int(player.state["cache.next"].min()) < spec.cache.slots + 2 * spec.cache.chunk:
        player.block()
    seconds = [player.block() for _ in range(blocks)]
    ahead = overlapped(world, player.state, [(player.action, player.noise)] * blocks, Aside(device))
    begun, pictures = time.perf_counter(), 0
    for made in ahead:
        pictures += made.cpu().shape[1]
    frames_per_s_overlapped = pictures / (time.perf_counter() - begun)
    used = torch.cuda.max_memory_allocated() / (1 << 20) if device.type == "cuda" else None
    with FlopCounterMode(display=False) as counter:  # float8's products are counted as those of bf16
        random_player = Player(random_world(spec, device), device, dict(player.state))
        random_player.block()
    median = statistics.median(seconds)
    return {
        "frames_per_s": round(world.pictures / median, 2),
        "frames_per_s_overlapped": round(frames_per_s_overlapped, 2),
        "block_s": round(median, 4),
        "slowest_block_s": round(max(seconds), 4),
        "frames_per_block": world.pictures,
        "first_frame_s": round(first_frame_s, 2),
        "gpu_mb": None if used is None else round(used, 1),
        "flops_per_block": counter.get_total_flops(),
    }


def play_graph(spec: Any, backend: str, folder: Path, blocks: int) -> dict[str, Any]:
    """Play the same world from a full cache as a graph that keeps its state on the GPU."""
    import torch

    from export.wan_onnx import steady_state, write_block

    cuda, device, kind = gpu(), torch.device("cuda"), torch.float16
    taken, begun = cuda.used_mb(), time.perf_counter()
    world = plain_world(spec, device, kind)
    state = steady_state(world, torch.randn(1, *world.about.prompt_shape, dtype=kind, device=device))
    graph = write_block(world, state, folder)
    noise = torch.randn(1, *world.about.noise_shape, dtype=kind)
    arrays, pictures = {name: part.cpu().numpy() for name, part in state.items()}, world.pictures
    del world, state
    torch.cuda.empty_cache()
    player = GraphPlayer(cuda, graph_maker(backend, cuda, graph), graph, arrays)
    player.block(noise.numpy())
    first_frame_s = time.perf_counter() - begun  # tracing, writing and building included
    seconds = [player.block(noise.numpy()) for _ in range(blocks)]
    median = statistics.median(seconds)
    return {
        "frames_per_s": round(pictures / median, 2),
        "block_s": round(median, 4),
        "slowest_block_s": round(max(seconds), 4),
        "frames_per_block": pictures,
        "first_frame_s": round(first_frame_s, 2),
        "gpu_mb": round(cuda.used_mb() - taken, 1),
    }


def graph_maker(backend: str, cuda: Any, graph: Path) -> Any:
    """Makes engines of this graph, which is in fp16 already."""
    if backend == "onnxruntime-cuda":
        from runtime.backends.onnxruntime_cuda import OrtGpuMaker, cuda_provider

        return OrtGpuMaker(cuda, backend, "fp32", 1, [cuda_provider(cuda)])  # fp32: its weights stay as they are
    from export.tensorrt import About, build, cached, load_package
    from runtime.backends.tensorrt import TensorRtMaker

    about = About("random", graph.stem, "fp16", 1, backend, load_package(backend).__version__, cuda.name)
    cached(about, graph.parent, lambda: build(graph, about))
    return TensorRtMaker(cuda, backend, about.version, about.world_hash, about.precision, 1, graph.parent)


class GraphPlayer:
    """Somebody who watches a block's graph; the state goes back and forth between two sets of arrays on the GPU."""

    def __init__(self, cuda: Any, maker: Any, graph: Path, state: dict[str, Any]) -> None:
        import numpy as np

        from runtime.backends.on_gpu import empty
        from runtime.onnx_header import read_header

        header = read_header(graph.read_bytes(), graph.name)
        self.engine = maker.make(graph, header, 1, False)
        self.inputs = [name.removeprefix("state.") for name in header.inputs if name != "noise"]
        self.state = {name: empty(cuda, array.shape, array.dtype) for name, array in state.items()}
        for name, array in state.items():
            cuda.upload(np.ascontiguousarray(array), self.state[name].memory)
            cuda.finish()
        changed = [name.removeprefix("next.") for name in header.outputs]
        self.spare = {name: empty(cuda, state[name].shape, state[name].dtype) for name in changed}

    def block(self, noise: Any) -> float:
        """Seconds of one block, its pictures on the host."""
        import numpy as np

        begun = time.perf_counter()
        given = {f"state.{name}": self.state[name] for name in self.inputs}
        self.engine.run({"noise": noise, **given}, {f"next.{name}": array for name, array in self.spare.items()})
        before, self.state = self.state, {**self.state, **self.spare}
        self.spare = {name: before[name] for name in self.spare}
        self.pictures = np.asarray(self.state["queue"])
        return time.perf_counter() - begun


def random_world(spec: Any, device: Any) -> Any:
    """In bfloat16, with the commit riding in the next block's first pass."""
    import dataclasses

    import torch

    world = plain_world(spec, device, torch.bfloat16)
    world.stream = dataclasses.replace(world.stream, fused=True, in_place=True)
    return world


def plain_world(spec: Any, device: Any, kind: Any) -> Any:
    """With random weights of this type."""
    import torch

    from worldmodel.families.wan_world import WanWorld

    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with device:
            torch.manual_seed(0)
            return WanWorld(spec).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


class Player:
    """Somebody who watches: every picture goes to the host."""

    def __init__(self, world: Any, device: Any, state: dict[str, Any] | None = None) -> None:
        import torch

        self.world, about = world, world.about
        kind = {"dtype": torch.bfloat16, "device": device}
        self.noise, self.action = torch.randn(1, *about.noise_shape, **kind), torch.zeros(1, 0, **kind)
        self.prompt = torch.randn(1, *about.prompt_shape, **kind)
        empty = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in world.state_shapes().items()
        }
        self.state = state or world.recache(empty, self.prompt)

    def block(self) -> float:
        """Seconds of one block, all of its pictures shown."""
        begun = time.perf_counter()
        while True:
            frame, self.state = self.world(self.state, self.action, self.prompt, self.noise)
            frame.cpu()
            if not int(self.state["queue.left"]):
                return time.perf_counter() - begun


def text(report: dict[str, Any]) -> str:
    peak = report["peak_flops"]
    yardstick = f"{peak / 1e12:.0f} TFLOP/s in bf16 products" if peak else "no yardstick"
    lines = [f"{report['gpu']}, compute capability {'.'.join(map(str, report['capability']))}, {yardstick}", ""]
    lines += [
        "| Wan 1.3B, 832 × 480 | frames/s | overlapped | block | first frame | GPU memory | share of peak |",
        "|---|" + "---|" * 6,
    ]
    for one in report["wan"] + report["graph"]:
        name = f"{one.get('backend', 'torch')} {one['precision']}"
        if "error" in one:
            lines.append(f"| {name} | {one['error']} | | | | | |")
            continue
        counted = peak and "flops_per_block" in one  # a graph's work is not counted
        share = f"{one['flops_per_block'] / one['block_s'] / peak:.0%}" if counted else ""
        lines.append(
            f"| {name} | {one['frames_per_s']} | {one.get('frames_per_s_overlapped', '')} "
            f"| {1000 * one['block_s']:.0f} ms | {one['first_frame_s']} s | {one['gpu_mb']} MB | {share} |"
        )
    lines += ["", f"| {WORLD} | ticks/s | p50 | p99 | first frame | GPU memory | share of peak |", "|---|" + "---|" * 6]
    for one in report["world"]:
        name = f"{one['backend']} {one['precision']}"
        if "error" in one:
            lines.append(f"| {name} | {one['error']} | | | | | |")
            continue
        found = one["results"][0]
        share = (
            f"{found['flops_per_tick'] * found['ticks_per_s'] / peak:.1%}" if peak and found["flops_per_tick"] else ""
        )
        lines.append(
            f"| {name} | {found['ticks_per_s']} | {found['tick_ms']['p50']} ms | {found['tick_ms']['p99']} ms "
            f"| {found['first_frame_s']} s | {found['gpu_mb']} MB | {share} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

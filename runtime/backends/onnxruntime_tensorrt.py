"""ONNX Runtime with TensorRT behind it: engines are built at the first start, kept, and built anew for another GPU.

What TensorRT does not take, the CUDA provider runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import platformdirs

from runtime.backends import Backend, check_precision, notice
from runtime.backends.graphs import load_graphs
from runtime.backends.on_gpu import GpuState
from runtime.backends.onnxruntime_cuda import PRECISIONS, OrtGpuMaker, cuda_provider, without_graphs
from runtime.cuda import Cuda, gpu
from runtime.world import World

PROVIDER = "TensorrtExecutionProvider"
LIBRARY = "onnxruntime_providers_tensorrt.dll" if sys.platform == "win32" else "libonnxruntime_providers_tensorrt.so"


def load(world: World, threads: int, precision: str, players: int) -> Backend:
    check_precision("onnxruntime-tensorrt", precision, PRECISIONS)
    cuda, chosen = gpu(), precision.replace("auto", "fp16")
    folder = Path(platformdirs.user_cache_dir("worldloop"), "onnxruntime-tensorrt", world.hash[:16])
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        notice(f"building TensorRT engines of {world.manifest.name} for {cuda.name}, once: this may take minutes")
    name, options = cuda_provider(cuda)
    providers = [(PROVIDER, tensorrt_options(cuda, chosen, folder)), (name, without_graphs(options))]
    maker = OrtGpuMaker(cuda, "onnxruntime-tensorrt", chosen, threads, providers, missing=LIBRARY)
    return load_graphs(world, maker, players, GpuState(cuda))


def tensorrt_options(cuda: Cuda, precision: str, folder: Path) -> dict[str, str]:
    """The provider names its engines by graph, GPU and version itself."""
    return {
        "user_compute_stream": str(cuda.stream),
        "trt_cuda_graph_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(int(precision == "fp16")),
        "trt_bf16_enable": str(int(precision == "bf16")),
    }

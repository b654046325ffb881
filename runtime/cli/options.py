"""Options that several commands share, and how a command ends: one JSON object on stdout, or lines for people."""

from __future__ import annotations

import json
from typing import Annotated, Any

import numpy as np
import typer

WorldName = Annotated[
    str, typer.Argument(metavar="WORLD", help="a shipped world's name, 'mock', or the path of a .world file")
]
Seed = Annotated[int, typer.Option(help="of all randomness", min=0, max=(1 << 63) - 1)]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads (default: as many as a tick needs for half its period, often one; for several players all "
        "cores, at most 4)",
        min=1,
        max=1024,
    ),
]
BackendName = Annotated[
    str,
    typer.Option(
        help="auto, openvino, onnxruntime, torch or mock; on a GPU: onnxruntime-cuda, onnxruntime-tensorrt, "
        "torch-cuda, tensorrt, tensorrt-rtx. A GPU that is asked for by name and cannot be used is an error; auto says "
        "in one line that the CPU plays instead"
    ),
]
Precision = Annotated[str, typer.Option(help="auto, bf16, fp16 (on a GPU), int8 or fp32")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]


def finish(report: dict[str, Any], as_json: bool, text: str) -> None:
    """Say the result: for a script or for a person."""
    print(json.dumps(report) if as_json else text)


def milliseconds(seconds: list[float], percentiles: tuple[int, ...] = (50, 95, 99)) -> dict[str, float]:
    """Percentiles in milliseconds, rounded to microseconds: {"p50": …}; nothing was measured: zeros."""
    values = np.percentile(np.array(seconds) * 1000, percentiles) if seconds else np.zeros(len(percentiles))
    return {f"p{p}": round(float(value), 3) for p, value in zip(percentiles, values, strict=True)}

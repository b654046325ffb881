"""Golden cases: folders of recorded inputs and results of public implementations, and the check of ours against them.

A case is recomputed by the runner registered for its `kind`. A new kind is one function `run(case) -> outputs` and one
line in `RUNNERS`; runners are imported when a case of their kind is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import SpecError
from worldmodel.families.tensor_file import read_tensors

RUNNERS: dict[str, str] = {  # kind in meta.json: module:function
    "wan_forward": "worldmodel.families.golden_wan:run_wan_forward",
    "self_forcing_block": "worldmodel.families.golden_wan:run_self_forcing",
    "self_forcing_window": "worldmodel.families.golden_wan:run_self_forcing",
    "causal_forcing": "worldmodel.families.golden_wan:run_self_forcing",
    "causal_forcing_camera": "worldmodel.families.golden_wan:run_camera",
    "longlive": "worldmodel.families.golden_wan:run_longlive",
    "rolling_forcing": "worldmodel.families.golden_wan:run_rolling_forcing",
    "reward_forcing": "worldmodel.families.golden_wan:run_reward_forcing",
    "matrix_game2": "worldmodel.families.golden_wan:run_matrix_game2",
    "wan_vae_stream": "worldmodel.families.golden_codecs:run_wan_vae",
    "taehv": "worldmodel.families.golden_codecs:run_taehv",
    "diamond_step": "worldmodel.families.golden_diamond:run",
    "open_oasis": "worldmodel.families.golden_open_oasis:run",
    "waypoint": "worldmodel.families.golden_waypoint:run",
    "waypoint_ae": "worldmodel.families.golden_waypoint:run_ae",
}


PARTS = ("weights", "inputs", "outputs")  # the tensor files of a case


@dataclass(frozen=True)
class Case:
    """One golden folder: its description and its tensors."""

    name: str
    meta: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @property
    def kind(self) -> str:
        return str(self.meta["kind"])

    @property
    def tolerance(self) -> float:
        """Largest error of an output that is accepted, in units of its standard deviation."""
        return float(self.meta["tolerance"]["suggested"])


@dataclass(frozen=True)
class Verdict:
    """What checking one case found. `errors` has one number per expected output, `missing` those nobody computed."""

    name: str
    kind: str
    tolerance: float
    errors: dict[str, float]
    missing: tuple[str, ...]

    @property
    def ok(self) -> bool:
        # Written so that a NaN fails.
        return not self.missing and all(error <= self.tolerance for error in self.errors.values())


def read_case(folder: Path) -> Case:
    """Load a golden folder; a file that is missing or damaged is a SpecError naming it."""
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text())
        if not isinstance(meta, dict):
            raise ValueError(f"its JSON is a {type(meta).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not a golden case: {error}") from error
    absent = [field for field in ("kind", "tolerance", "tensor_files") if field not in meta]
    if absent:
        raise SpecError(f"{path}: fields {absent} are missing")
    try:
        float(meta["tolerance"]["suggested"])
        files = [folder / meta["tensor_files"][part] for part in PARTS]
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{path}: tolerance.suggested must be a number, tensor_files must name {PARTS}") from error
    tensors = {part: read_tensors(file) for part, file in zip(PARTS, files, strict=True)}
    for part, file in zip(PARTS, files, strict=True):
        _as_described(file, tensors[part], meta.get("tensors"), part)
    if not tensors["outputs"]:
        raise SpecError(f"{files[-1]}: no outputs to compare with")
    return Case(str(meta.get("name", folder.name)), meta, *tensors.values())


def _as_described(file: Path, tensors: dict[str, Tensor], described: object, part: str) -> None:
    """Check a file's tensors: finite, and those of meta.json's list, where it has one."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SpecError(f"{file}: '{name}' holds NaN or infinite numbers")
    listed = described.get(part) if isinstance(described, dict) else None
    for name, entry in (listed if isinstance(listed, dict) else {}).items():
        if name not in tensors:
            raise SpecError(f"{file}: '{name}' is missing, meta.json lists it")
        shape = list(entry.get("shape", tensors[name].shape)) if isinstance(entry, dict) else []
        if isinstance(entry, dict) and shape != list(tensors[name].shape):
            raise SpecError(f"{file}: '{name}' has shape {list(tensors[name].shape)}, meta.json says {shape}")


def check(case: Case) -> Verdict:
    """Recompute a case in float32 and compare every output. Tensors named `*.debug.*` may be left out by a runner."""
    runner, where = find_runner(case.kind), f"golden case '{case.name}'"
    try:
        with torch.inference_mode():
            computed = runner(case)
    except KeyError as error:
        raise SpecError(f"{where}: {error} is missing from meta.json or the tensor files") from error
    except (ArithmeticError, AttributeError, IndexError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        # Anything can stand in a stranger's meta.json. The cause is kept for whoever suspects the code instead.
        raise SpecError(f"{where}: meta.json and the tensor files do not fit together: {error}") from error
    errors = {name: deviation(computed[name], want) for name, want in case.expected.items() if name in computed}
    missing = tuple(name for name in case.expected if name not in computed and ".debug." not in name)
    return Verdict(case.name, case.kind, case.tolerance, errors, missing)


def find_runner(kind: str) -> Callable[[Case], dict[str, Tensor]]:
    if kind not in RUNNERS:
        raise SpecError(f"golden kind '{kind}' is not known: the known ones are {', '.join(sorted(RUNNERS))}")
    module, function = RUNNERS[kind].split(":")
    found: Callable[[Case], dict[str, Tensor]] = getattr(import_module(module), function)
    return found


def deviation(got: Tensor, want: Tensor) -> float:
    """max |got − want| in standard deviations of `want`; of a tensor without spread, in its largest value.

    Recordings may keep the first players of a batch only: so many are compared.
    """
    if got.ndim > 2 and want.ndim == got.ndim and len(got) > len(want):
        got = got[: len(want)]
    if got.shape != want.shape:
        return float("inf")
    error = (got.double() - want.double()).abs().max().item()
    spread, largest = want.double().std(correction=0).item(), want.double().abs().max().item()
    unit = spread if spread > 1e-9 * largest else largest
    return error / unit if unit else error

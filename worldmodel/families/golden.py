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
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: not a golden case: {error}") from error
    absent = [field for field in ("kind", "tolerance", "tensor_files") if field not in meta]
    if absent:
        raise SpecError(f"{path}: fields {absent} are missing")
    files = {part: folder / meta["tensor_files"][part] for part in ("weights", "inputs", "outputs")}
    weights, inputs, outputs = (read_tensors(files[part]) for part in ("weights", "inputs", "outputs"))
    return Case(str(meta.get("name", folder.name)), meta, weights, inputs, outputs)


def check(case: Case) -> Verdict:
    """Recompute a case in float32 and compare every output. Tensors named `*.debug.*` may be left out by a runner."""
    runner = find_runner(case.kind)
    try:
        with torch.inference_mode():
            computed = runner(case)
    except KeyError as error:
        raise SpecError(f"golden case '{case.name}': {error} is missing from meta.json or the tensor files") from error
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
    """max |got − want| in standard deviations of `want`; of a tensor without spread, in its largest value."""
    if got.shape != want.shape:
        return float("inf")
    error = (got.double() - want.double()).abs().max().item()
    spread, largest = want.double().std(correction=0).item(), want.double().abs().max().item()
    unit = spread if spread > 1e-9 * largest else largest
    return error / unit if unit else error

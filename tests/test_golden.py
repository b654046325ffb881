"""Every recorded result of a public implementation is reproduced, and a wrong one is noticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldmodel.errors import CheckpointError, SpecError
from worldmodel.families.golden import check, deviation, read_case

GOLDENS = Path(__file__).parent / "goldens"
WAN = [
    "wan_forward",
    "self_forcing_block",
    "self_forcing_window",
    "causal_forcing_2step",
    "causal_forcing_1step_image",
    "causal_forcing_camera",
    "longlive",
    "longlive_relative",
    "rolling_forcing",
    "reward_forcing",
    "matrix_game2",
]


@pytest.mark.parametrize("name", WAN)
def test_the_public_implementation_is_reproduced(name):
    verdict = check(read_case(GOLDENS / name))
    assert verdict.ok, (verdict.errors, verdict.missing)
    assert max(verdict.errors.values()) < 1e-5  # a margin of ten under the folder's own tolerance


def test_a_changed_weight_is_noticed():
    case = read_case(GOLDENS / "reward_forcing")
    case.weights["blocks.1.self_attn.k.weight"][0] *= 1.05
    assert not check(case).ok


def test_an_output_that_nobody_computes_fails_the_case():
    case = read_case(GOLDENS / "causal_forcing_2step")
    case.expected["something.else"] = torch.zeros(1)
    verdict = check(case)
    assert not verdict.ok and verdict.missing == ("something.else",)


def test_errors_are_measured_in_standard_deviations():
    want = torch.tensor([0.0, 2.0])
    assert deviation(want + torch.tensor([0.0, 0.1]), want) == pytest.approx(0.1)
    constant = torch.full((3,), 500.0)
    assert deviation(constant + 0.05, constant) == pytest.approx(1e-4, rel=1e-2)
    assert deviation(torch.tensor([float("nan"), 1.0]), want) != deviation(want, want)
    assert deviation(torch.zeros(3), want) == float("inf")


def copy_of(name: str, to: Path, **changes) -> Path:
    source, folder = GOLDENS / name, to / name
    folder.mkdir()
    meta = json.loads((source / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))
    for part in ("weights", "inputs", "outputs"):
        (folder / f"{part}.safetensors").write_bytes((source / f"{part}.safetensors").read_bytes())
    return folder


def test_an_unknown_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(SpecError, match=r"kind 'nonsense' is not known.*rolling_forcing"):
        check(read_case(copy_of("wan_forward", tmp_path, kind="nonsense")))


def test_a_case_without_its_description_says_so(tmp_path):
    with pytest.raises(SpecError, match=r"meta\.json: not a golden case"):
        read_case(tmp_path)


def test_a_missing_weight_is_named(tmp_path):
    folder = copy_of("wan_forward", tmp_path)
    weights = load_file(folder / "weights.safetensors")
    weights["head.head.bais"] = weights.pop("head.head.bias")
    save_file(weights, folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"missing.*head\.head\.bias"):
        check(read_case(folder))

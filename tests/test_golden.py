"""Every recorded result of a public implementation is reproduced, and a wrong one is noticed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.cli import main
from worldmodel.errors import CheckpointError, SpecError
from worldmodel.families.golden import check, deviation, read_case

GOLDENS, VARIED = (Path(__file__).parent / folder for folder in ("goldens", "goldens_varied"))
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


@pytest.mark.parametrize("name", sorted(path.parent.name for path in VARIED.glob("*/meta.json")))
def test_sizes_windows_and_step_lists_are_those_of_the_description(name):
    verdict = check(read_case(VARIED / name))
    assert verdict.ok, (verdict.errors, verdict.missing)


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


def edit(folder: Path, place: str, value: object) -> None:
    """Set a number of meta.json, such as run.num_blocks."""
    part, name = place.split(".")
    meta = json.loads((folder / "meta.json").read_text())
    meta[part][name] = value
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "place, value, reason",
    [
        ("model.num_layers", 10**9, r"num_layers is 1000000000, the weights have 2"),
        ("model.latent_height", 10**6, r"latent_height and _width are"),
        ("model.num_heads", 0, r"do not fit together"),
        ("model.patch_size", [1, 0, 2], r"patch must be at least one"),
        ("run.num_blocks", 10**9, r"num_blocks is 1000000000, the noise has 7 frames"),
        ("run.cfg_guidance", 3.0, r"cfg_guidance must be null"),
        ("schedule.num_train_timesteps", 10**12, r"a flow table needs"),
        ("schedule.timesteps", [0.0, 1000.0], r"must fall from step to step"),
        ("tolerance.suggested", "loose", r"tolerance\.suggested must be a number"),
    ],
)
def test_a_description_that_cannot_be_is_refused_before_anything_large_is_made(tmp_path, place, value, reason):
    folder = copy_of("causal_forcing_1step_image", tmp_path)
    edit(folder, place, value)
    with pytest.raises(SpecError, match=reason):
        check(read_case(folder))


def test_what_the_public_code_cannot_run_is_refused_with_the_reason(tmp_path):
    folder = copy_of("longlive_relative", tmp_path)
    edit(folder, "run.sink_size", 6)
    with pytest.raises(SpecError, match=r"sink_size is 6 and a block has 3 frames.*more values than keys"):
        check(read_case(folder))


@pytest.mark.parametrize(
    "part, name, value, reason",
    [
        ("inputs", "noise", float("nan"), r"'noise' holds NaN"),
        ("outputs", "latents", float("inf"), r"'latents' holds NaN or infinite"),
        ("inputs", "noise", None, r"'noise' is missing, meta\.json lists it"),
    ],
)
def test_damaged_recordings_are_refused(tmp_path, part, name, value, reason):
    folder = copy_of("causal_forcing_1step_image", tmp_path)
    tensors = load_file(folder / f"{part}.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name].view(-1)[0] = value
    save_file(tensors, folder / f"{part}.safetensors")
    with pytest.raises(SpecError, match=reason):
        read_case(folder)


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path, capsys):
    copy_of("causal_forcing_1step_image", tmp_path)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "meta.json").write_text("[1, 2]")
    with pytest.raises(SystemExit) as ended:
        main(["parity", str(tmp_path)])
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert "causal_forcing_1step_image (causal_forcing): ok" in told.out
    assert told.err.count("\n") == 1 and "its JSON is a list, not an object" in told.err


def test_every_name_in_a_folder_of_cases_may_be_given(tmp_path, capsys):
    copy_of("causal_forcing_1step_image", tmp_path)
    (tmp_path / "README.md").write_text("what these are")
    with pytest.raises(SystemExit) as ended:
        main(["parity", *map(str, sorted(tmp_path.iterdir()))])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert "causal_forcing_1step_image (causal_forcing): ok" in told.out
    assert told.err == f"{tmp_path / 'README.md'}: not a golden folder, passed over\n"

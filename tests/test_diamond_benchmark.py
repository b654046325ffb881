"""benchmarks/diamond.py: from a recording and a world to one table; every way to play DIAMOND plays the same."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")
pytest.importorskip("onnxscript")

from safetensors.torch import save_file
from small_recording import recorded

from benchmarks import diamond as benchmark
from benchmarks.diamond import Plan, diamond_ways, nearer, sentence
from benchmarks.kept import once
from runtime.errors import UsageError
from worldmodel.errors import DatasetError
from worldmodel.families.diamond import DiamondSpec, DiamondWorld
from worldmodel.spec import CodecSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import World
from worldmodel.train.diamond import train_diamond
from worldmodel.train.envs.car_racing import CarRacing

SMALL = {"cond_channels": 16, "depths": (1, 1), "channels": (8, 8), "attn_depths": (False, False)}
SPEC = WorldSpec(
    name="small", height=32, width=32, tick_hz=25, actions=("left", "right", "gas", "brake"), keys={},
    environment="car_racing", window=2, codec=CodecSpec(channels=4, encoder_width=16, decoder_widths=(16, 8, 8)),
    generator=GeneratorSpec(dim=32, depth=1, heads=2, action_history=2),
)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small DIAMOND, few frames to measure, and no compiler, which takes minutes."""
    monkeypatch.setattr(benchmark, "train_diamond", partial(train_diamond, changes=SMALL))
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def cars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("cars"), CarRacing(size=32), "car_racing", 400).folder


def untrained(folder: Path) -> Path:
    """A native world's run folder."""
    folder.mkdir()
    torch.manual_seed(0)
    world = World(SPEC)
    (folder / "spec.json").write_text(SPEC.to_json())
    save_file(world.codec.state_dict(), folder / "codec.safetensors")
    save_file({n: t.contiguous() for n, t in world.generator.state_dict().items()}, folder / "world.safetensors")
    (folder / "world.json").write_text(json.dumps([{"step": 1, "seconds": 4.0}]))
    return folder


@pytest.mark.usefixtures("small")
def test_a_recording_and_a_world_become_one_table(
    cars: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "diamond_ways", lambda *given: itertools.islice(diamond_ways(*given), 2))  # on torch
    plan = Plan(cars, tmp_path / "out", untrained(tmp_path / "native"), batch=4, ticks=50, rollouts=1)
    found = benchmark.run(plan)
    assert found["seconds"]["world"] == 4 and found["seconds"]["DIAMOND"] >= 4, "as long as the world was trained"
    assert "prompt" in found["reports"]["world"] and "prompt" not in found["reports"]["DIAMOND"]
    ours, theirs = (found["reports"][name]["scenes"]["car_racing"] for name in ("world", "DIAMOND"))
    for figure in ("psnr_copy", "keys_real", "on_road_real", "memory_real", "turn_sign_real"):
        assert ours[figure] == theirs[figure], "both begin at the same moments"
    assert set(found["nearer"]["car_racing"]) == set(benchmark.IDEAL)
    table = (tmp_path / "out" / "diamond.md").read_text()
    for row in ("`psnr_next`", "`frechet_last`", "`prompt.recognised`", "frames per second, fastest", "DIAMOND |"):
        assert f"| {row}" in table
    assert json.loads((tmp_path / "out" / "diamond.json").read_text())["speed_ratio"] > 0
    played = {(way["who"], way["backend"], way["precision"]) for way in found["speeds"]}
    assert {("DIAMOND", "torch", "fp32"), ("DIAMOND", "torch", "bf16"), ("world", "torch", "fp32")} < played
    weights = (tmp_path / "out" / "diamond" / "denoiser.safetensors").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(benchmark, "measured", lambda *given: found["speeds"])
    again = benchmark.run(plan)
    assert "next frames" not in capsys.readouterr().err, "what was tried stays tried"
    assert again["reports"]["world"]["scenes"] == json.loads(json.dumps(found["reports"]["world"]["scenes"]))
    assert (tmp_path / "out" / "diamond" / "denoiser.safetensors").read_bytes() == weights
    with pytest.raises(DatasetError, match="another game, size or keys"):
        other = recorded(tmp_path, CarRacing(size=24), "car_racing", 40).folder
        benchmark.run(Plan(other, tmp_path / "other", plan.world))


@pytest.mark.usefixtures("small")
def test_every_way_to_play_diamond_plays_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    world = DiamondWorld(DiamondSpec(5, height=20, width=24, **SMALL)).eval().requires_grad_(False)
    torch.nn.init.normal_(world.denoiser.inner_model.noise_emb.weight)
    shown = {}
    for backend, precision, player in diamond_ways(world, tmp_path):
        player.play(4)
        shown[backend, precision] = player.frame.astype(int)
    exact = shown["torch", "fp32"]
    assert {("torch", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32")} <= set(shown) and exact.std() > 5
    for (_, precision), frame in shown.items():
        far = np.abs(frame - exact)
        assert far.max() <= 3 if precision == "fp32" else far.mean() < 3


def test_who_is_nearer_counts_from_what_is_best_and_says_what_may_be_chance() -> None:
    ours = {"psnr_next": 31.0, "flow_ratio": 1.2, "stall": 0.0, "memory": float("nan"), "diversity": None, "follow": 1}
    theirs = {"psnr_next": 30.0, "flow_ratio": 0.9, "stall": 0.0, "memory": 0.5, "diversity": 0.5, "follow": 0.2}
    spans = [{"psnr_next": [30.5, 31.5], "flow_ratio": [1.1, 1.3]}, {"psnr_next": [29, 30.2], "flow_ratio": [0.8, 1.1]}]
    reports = {
        name: {"scenes": {"cars": figures | {"intervals": span}}}
        for name, figures, span in zip(("world", "DIAMOND"), (ours, theirs), spans, strict=True)
    }
    found = nearer(reports)["cars"]
    assert found == {
        "psnr_next": {"nearer": "world", "sure": True}, "follow": {"nearer": "world", "sure": None},
        "flow_ratio": {"nearer": "DIAMOND", "sure": False}, "stall": {"nearer": "equal", "sure": None},
    }  # fmt: skip
    said = sentence(found)
    assert "world nearer to the real game in 2 of 4 (psnr_next, follow)" in said and "(flow_ratio*)" in said


def test_what_was_found_is_found_anew_only_when_something_else_is_asked(tmp_path: Path) -> None:
    path, calls = tmp_path / "kept.json", []

    def find() -> dict[str, int]:
        calls.append(len(calls))
        return {"call": calls[-1]}

    assert [once(path, {"ticks": ticks}, find)["call"] for ticks in (5, 5, 6, 6)] == [0, 0, 1, 1]


def test_a_world_that_does_not_say_how_long_it_was_trained_needs_minutes(cars: Path, tmp_path: Path) -> None:
    native = untrained(tmp_path / "native")
    (native / "world.json").unlink()
    with pytest.raises(UsageError, match="give --minutes"):
        benchmark.run(Plan(cars, tmp_path / "out", native))


def test_a_mistake_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["diamond", "--data", str(tmp_path), "--out", str(tmp_path), "--world", "nowhere"])
    with pytest.raises(SystemExit) as left:
        benchmark.main()
    assert left.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1

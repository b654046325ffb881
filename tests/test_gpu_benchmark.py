"""benchmarks/gpu.py without a GPU: what it says, and its game of Wan on the CPU in the GPU's place."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_gpu import fake_gpu

from export.fp8 import Float8Linear, narrow
from export.overlapped import Aside, overlapped
from export.wan_onnx import block, steady_state, write_block
from runtime.backends.onnxruntime_cuda import OrtGpuMaker
from runtime.cuda import gpu_name
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.codec.taehv import TaehvSpec
from worldmodel.families.wan_transformer import WanSpec
from worldmodel.families.wan_world import WanWorld, WanWorldSpec
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
SMALL = WanWorldSpec(
    "small", WanSpec(dim=32, ffn_dim=48, heads=2, layers=1, freq_dim=16, in_channels=4, out_channels=4, text_dim=16),
    SinkWindow(window=3, sink=1, chunk=1), FewStep(FlowTable().warp((1000, 500))), rows=4, columns=4, prompt_rows=3,
    codec=TaehvSpec(decoder_channels=(8, 8, 8, 8), encoder_channels=8, latent_channels=4),
)  # fmt: skip


@pytest.mark.skipif(gpu_name() is not None, reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "no NVIDIA driver here" in done.stderr


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_game_of_wan_is_measured(precision):
    play_wan = runpy.run_path(str(SCRIPT))["play_wan"]
    found = play_wan(SMALL, precision, torch.device("cpu"), blocks=2, compiled=False)
    assert found["frames_per_block"] == 4 and found["frames_per_s"] > 0 and found["flops_per_block"] > 0
    assert found["frames_per_s_overlapped"] > 0


@torch.no_grad()
def test_blocks_decoded_aside_show_the_same_pictures(monkeypatch):
    torch.manual_seed(0)
    world = WanWorld(SMALL).eval()
    zero = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in world.state_shapes().items()}
    start, action = world.recache(zero, torch.randn(1, *world.about.prompt_shape)), torch.zeros(1, 0)
    noises = [torch.randn(1, *world.about.noise_shape) for _ in range(5)]
    expected, state = [], start
    for noise in noises:
        while True:
            frame, state = world(state, action, torch.zeros(1, *world.about.prompt_shape), noise)
            expected.append(frame[0])
            if not int(state["queue.left"]):
                break
    threads, decode = set(), world.decode
    monkeypatch.setattr(world, "decode", lambda *given: threads.add(threading.get_ident()) or decode(*given))
    made = [pictures[0] for pictures in overlapped(world, start, [(action, n) for n in noises], Aside(action.device))]
    assert [len(pictures) for pictures in made] == [1, 4, 4, 4, 4]
    assert torch.equal(torch.cat(made), torch.stack(expected))
    assert len(threads) == 1 and threading.get_ident() not in threads


@torch.no_grad()
def test_a_game_of_a_wan_graph_is_that_of_torch(tmp_path):
    """onnxruntime's CPU provider computes where a driver played by the host has its memory."""
    namespace = runpy.run_path(str(SCRIPT))
    world = namespace["plain_world"](SMALL, torch.device("cpu"), torch.float32)
    state = steady_state(world, torch.randn(1, *world.about.prompt_shape))
    graph = write_block(world, state, tmp_path)
    cuda, driver = fake_gpu()
    maker = OrtGpuMaker(cuda, "fake", "fp32", 1, [("CPUExecutionProvider", {})], device="cpu")
    player = namespace["GraphPlayer"](cuda, maker, graph, {name: part.numpy() for name, part in state.items()})
    for number in range(4):
        torch.manual_seed(number)
        noise = torch.randn(1, *world.about.noise_shape)
        state = block(world, state, noise)
        assert player.block(noise.numpy()) > 0
        assert np.abs(player.pictures.astype(int) - state["queue"].numpy()).max() <= 1
    assert driver.copies.count("down") == 4  # the pictures; all else stays there


def test_what_did_not_run_stands_in_the_table():
    namespace = runpy.run_path(str(SCRIPT))
    wan = {
        "precision": "bf16",
        "frames_per_s": 45.0,
        "frames_per_s_overlapped": 50.0,
        "block_s": 0.25,
        "first_frame_s": 60.0,
        "gpu_mb": 9000.0,
    }
    report = {
        "gpu": "H200", "capability": [9, 0], "peak_flops": 6e14,
        "wan": [wan | {"flops_per_block": 75e12}, {"precision": "fp8", "error": "no time left"}],
        "graph": [wan | {"backend": "tensorrt", "precision": "fp16"}],
        "world": [{"backend": "tensorrt", "precision": "fp16", "error": "not installed"}],
    }  # fmt: skip
    lines = namespace["text"](report).splitlines()
    assert "| torch bf16 | 45.0 | 50.0 | 250 ms | 60.0 s | 9000.0 MB | 50% |" in lines
    assert "| torch fp8 | no time left | | | | | |" in lines
    assert "| tensorrt fp16 | 45.0 | 50.0 | 250 ms | 60.0 s | 9000.0 MB |  |" in lines
    assert namespace["in_process"](["-c", "1/0"], time.monotonic() + 60)["error"].startswith("ZeroDivisionError")
    assert namespace["in_process"](["-c", ""], 0.0) == {"error": "no time left"}


def test_layers_in_float8_are_within_five_percent():
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Linear(48, 5)).bfloat16()
    x = torch.randn(2, 3, 32).bfloat16()
    x[0, 0] *= 100  # a loud token must not cost the others their precision
    expected = plain[0](x).float()
    assert narrow(plain) == 1 and isinstance(plain[0], Float8Linear)  # the other one's size does not divide by 16
    error = (plain[0](x).float() - expected).square().mean(-1).sqrt() / expected.square().mean(-1).sqrt()
    assert error.max() < 0.05

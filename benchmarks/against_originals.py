"""Ticks per second beside the public loops, on this CPU, in one run: same small configuration, weights, noise and
outputs.

    python benchmarks/against_originals.py --self-forcing DIR --rolling-forcing DIR --reward-forcing DIR [--json]

DIR is a checkout of the original. Nothing of it is in here: it is imported from where it lies, run by its own pipeline
class, and only its sizes are set (it assumes 1,560 tokens a frame and 30 layers) and its attention, which needs a GPU
library, is given torch's. Configuration and weights are those of the golden cases. Each original runs in a process of
its own, because all three call their packages the same; within it both loops take turns, and the best of each counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from export.traced_tick import TracedTick  # noqa: E402
from worldmodel.cache.ema_sink import EmaSink  # noqa: E402
from worldmodel.cache.rolling_sink import RollingSink  # noqa: E402
from worldmodel.cache.sink_window import SinkWindow  # noqa: E402
from worldmodel.families.golden import Case, read_case  # noqa: E402
from worldmodel.families.golden_wan import (  # noqa: E402
    commit_level,
    few_step,
    latent_size,
    levels,
    transformer,
    wan_spec,
    window,
)
from worldmodel.families.wan_transformer import WanTransformer  # noqa: E402
from worldmodel.schedule.rolling import Rolling  # noqa: E402
from worldmodel.schedule.sampler import Stream  # noqa: E402

WARM_UP = 2  # runs
SMALL = {
    "dim": 32,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 4,
    "latent_height": 4,
    "latent_width": 4,
    "text_len": 8,
}
CASES = {
    "self-forcing": "self_forcing_window",
    "rolling-forcing": "rolling_forcing",
    "reward-forcing": "reward_forcing",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CASES:
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help="checkout of the original")
    parser.add_argument("--blocks", type=int, default=100, help="blocks per run")
    parser.add_argument("--repeats", type=int, default=4, help="runs of each, of which the best counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=list(CASES), help=argparse.SUPPRESS)  # the process of one original
    arguments = parser.parse_args()
    given = {name: vars(arguments)[name.replace("-", "_")] for name in CASES}
    given = {name: folder for name, folder in given.items() if folder}
    if not given:
        parser.error("give at least one checkout")
    if arguments.only:
        case = read_case(ROOT / "tests" / "goldens" / CASES[arguments.only])
        sizes = {"small": resized(case, SMALL), "golden": case}
        counts = arguments.blocks, arguments.repeats
        print(
            json.dumps([compare(arguments.only, given[arguments.only], name, sizes[name], *counts) for name in sizes])
        )
        return
    counts = arguments.blocks, arguments.repeats
    results = [one for name, folder in given.items() for one in in_its_own_process(name, folder, *counts)]
    print(json.dumps({"results": results}) if arguments.json else table(results))


def in_its_own_process(name: str, folder: Path, blocks: int, repeats: int) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, f"--{name}", str(folder.resolve()), "--only", name]
    command += ["--blocks", str(blocks), "--repeats", str(repeats)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@torch.inference_mode()
def compare(name: str, folder: Path, size: str, case: Case, blocks: int, repeats: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    noise = Noise(case, blocks)
    with quiet():
        original = MAKERS[name](folder, case, noise)
    ours = our_loop(case, noise, rolling=name == "rolling-forcing")
    seconds: dict[str, list[float]] = {"original": [], "ours": []}
    made: dict[str, Tensor] = {}
    for _ in range(WARM_UP):  # ours records the passes that come back
        ours()
    for _ in range(repeats):
        for who, run in (("original", original), ("ours", ours)):
            with quiet():
                began = time.process_time()
                made[who] = run()
                seconds[who].append(time.process_time() - began)
    rate = {who: blocks / min(times) for who, times in seconds.items()}
    return {
        "original": name,
        "size": size,
        "ticks_per_s_original": round(rate["original"], 2),
        "ticks_per_s_ours": round(rate["ours"], 2),
        "ratio": round(rate["ours"] / rate["original"], 2),
        "largest_difference": float((made["ours"] - made["original"]).abs().max() / made["original"].std()),
    }


def resized(case: Case, sizes: dict[str, int]) -> Case:
    """The same case with another transformer, of random weights."""
    model = {**case.meta["model"], **sizes}
    model["head_dim"] = model["dim"] // model["num_heads"]
    model["tokens_per_frame"] = model["latent_height"] * model["latent_width"] // 4
    meta = {**case.meta, "model": model}
    torch.manual_seed(0)
    empty = Case(case.name, meta, {}, {}, {})
    weights = {
        name: 0.2 * torch.randn(tensor.shape) for name, tensor in WanTransformer(wan_spec(empty)).state_dict().items()
    }
    noise = torch.zeros(1, 1, model["in_dim"], model["latent_height"], model["latent_width"])
    inputs = {"noise": noise, "prompt_embeds": torch.randn(1, model["text_len"], model["text_dim"])}
    return Case(case.name, meta, weights, inputs, {})


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| original | size | ticks/s original | ticks/s here | ratio | largest difference (std) |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        lines.append(
            f"| {one['original']} | {one['size']} | {one['ticks_per_s_original']} | {one['ticks_per_s_ours']} "
            f"| {one['ratio']}× | {one['largest_difference']:.1e} |"
        )
    return "\n".join(lines)


class Noise:
    """All noise of a run: block starts, and what is mixed in after each step of a block."""

    def __init__(self, case: Case, blocks: int) -> None:
        like = case.inputs["noise"]
        self.chunk, self.blocks, self.steps = case.meta["run"]["frames_per_block"], blocks, len(levels(case))
        generator = torch.Generator().manual_seed(0)
        self.start = torch.randn(like.shape[0], blocks * self.chunk, *like.shape[2:], generator=generator)
        self.between = torch.randn(
            blocks, self.steps - 1, like.shape[0], self.chunk, *like.shape[2:], generator=generator
        )


# -- our loop ----------------------------------------------------------------------------------------------------------


def our_loop(case: Case, noise: Noise, rolling: bool) -> Callable[[], Tensor]:
    run, chunk = case.meta["run"], noise.chunk
    if rolling:
        cache: SinkWindow = RollingSink(run["cache_frames"], run["sink_frames"], chunk, run["max_attention_frames"])
    elif "sink_ema_alpha" in run:
        cache = EmaSink(window(case), run["sink_size"], chunk, run["sink_ema_alpha"])
    else:
        cache = SinkWindow(window(case), run["sink_size"], chunk)
    schedule = Rolling(levels(case)) if rolling else few_step(case)
    plain = Stream(
        transformer(case),
        cache,
        schedule,
        latent_size(case),
        fused=True,
        commit_level=commit_level(case),
        in_place=True,
    )
    stream = TracedTick(plain)

    def play() -> Tensor:
        state = stream.prompted(stream.empty(noise.start.shape[0]), case.inputs["prompt_embeds"])
        taken, made = [0] * noise.blocks, []
        for block in range(noise.blocks):
            left = noise.blocks - block
            plan = (
                schedule.drain(left) if isinstance(schedule, Rolling) and left < schedule.blocks else stream.plan(state)
            )
            drawn = [noise.start[:, :0]]
            for lane in plan.draws(schedule.renoise):
                at, step = block + lane, taken[block + lane]
                drawn.append(noise.between[at, step - 1] if step else noise.start[:, at * chunk : (at + 1) * chunk])
                taken[at] += 1
            latents, state = stream.tick(state, torch.cat(drawn, 1), plan=plan)
            made.append(latents)
        return torch.cat(made, 1)

    return play


# -- the originals -----------------------------------------------------------------------------------------------------


def self_forcing(folder: Path, case: Case, noise: Noise) -> Callable[[], Tensor]:
    pipeline = original_pipeline(folder, case, "pipeline.causal_inference", "CausalInferencePipeline")
    order = [noise.between[block, step] for block in range(noise.blocks) for step in range(noise.steps - 1)]

    def run() -> Tensor:
        with drawn_from(order):
            return pipeline.inference(noise.start, [""], return_latents=True)[1]

    return run


def rolling_forcing(folder: Path, case: Case, noise: Noise) -> Callable[[], Tensor]:
    pipeline = original_pipeline(folder, case, "pipeline.rolling_forcing_inference", "CausalInferencePipeline")
    # It draws noise for a whole window and uses one block of it.
    order = []
    for newest in range(noise.blocks + noise.steps - 1):
        lo, hi = max(0, newest - noise.steps + 1), min(noise.blocks - 1, newest)
        for block in range(lo, hi + 1):
            step = newest - block
            if step < noise.steps - 1:
                whole = torch.zeros(noise.start.shape[0], hi - lo + 1, *noise.between.shape[3:])
                whole[:, block - lo] = noise.between[block, step]
                order.append(whole)
    found: list[Tensor] = []
    keep_latents(pipeline, found)

    def run() -> Tensor:
        with drawn_from(order):
            pipeline.inference_rolling_forcing(noise.start, [""])
        return found[-1]

    return run


MAKERS = {"self-forcing": self_forcing, "rolling-forcing": rolling_forcing, "reward-forcing": self_forcing}


def original_pipeline(folder: Path, case: Case, module: str, name: str) -> Any:
    """The original's own pipeline around the original's own network with the case's sizes and weights."""
    if "wan" not in sys.modules:
        prepare_imports(folder)
    network = importlib.import_module("wan.modules.causal_model")
    wrapper = importlib.import_module("utils.wan_wrapper")
    model, run = case.meta["model"], case.meta["run"]
    on_cpu(network, importlib.import_module("wan.modules.model"))
    tokens = model["tokens_per_frame"]
    causal = network.CausalWanModel(
        model_type="t2v", patch_size=tuple(model["patch_size"]), text_len=model["text_len"], in_dim=model["in_dim"],
        dim=model["dim"], ffn_dim=model["ffn_dim"], freq_dim=model["freq_dim"], text_dim=model["text_dim"],
        out_dim=model["out_dim"], num_heads=model["num_heads"], num_layers=model["num_layers"],
        local_attn_size=run.get("local_attn_size", -1), sink_size=run.get("sink_size", 0), qk_norm=model["qk_norm"],
        cross_attn_norm=model["cross_attn_norm"], eps=model["eps"],
    )  # fmt: skip
    causal.load_state_dict(case.weights)
    causal.eval().requires_grad_(False)
    for block in causal.blocks:
        attention = block.self_attn
        attention.max_attention_size = run.get("max_attention_frames", run.get("local_attn_size")) * tokens
        attention.frame_length, attention.block_length = tokens, run["frames_per_block"] * tokens
        attention.compression_alpha = run.get("sink_ema_alpha")
    network.CausalWanModel.from_pretrained = classmethod(lambda *_, **__: causal)
    options: dict[str, Any] = {"timestep_shift": case.meta["schedule"]["shift"], "is_causal": True}
    if "checkpoint_path" in inspect.signature(wrapper.WanDiffusionWrapper).parameters:
        options["checkpoint_path"] = ""
    generator = wrapper.WanDiffusionWrapper(**options)
    generator.seq_len = run["num_blocks"] * run["frames_per_block"] * tokens
    arguments = types.SimpleNamespace(
        denoising_step_list=case.meta["schedule"]["denoising_step_list"],
        warp_denoising_step=case.meta["schedule"]["warp"],
        num_frame_per_block=run["frames_per_block"],
        independent_first_frame=False,
        context_noise=run["context_noise"],
        checkpoint_path="",
    )
    prompt = case.inputs["prompt_embeds"]
    pipeline = getattr(importlib.import_module(module), name)(
        arguments,
        torch.device("cpu"),
        generator,
        lambda text_prompts: {"prompt_embeds": prompt},
        types.SimpleNamespace(decode_to_pixel=lambda latents, use_cache=False: latents),
    )
    pipeline.num_transformer_blocks, pipeline.frame_seq_length = model["num_layers"], tokens
    frames = run.get("cache_frames", run.get("local_attn_size"))
    caches = [fresh_cache(prompt.shape[0], frames * tokens, model) for _ in range(model["num_layers"])]
    setattr(pipeline, "kv_cache_clean" if "cache_frames" in run else "kv_cache1", caches)
    pipeline.crossattn_cache = [
        {**fresh_cache(prompt.shape[0], model["text_len"], model), "is_init": False} for _ in range(model["num_layers"])
    ]
    return pipeline


def fresh_cache(batch: int, tokens: int, model: dict[str, Any]) -> dict[str, Any]:
    empty = torch.zeros(batch, tokens, model["num_heads"], model["head_dim"])
    ends = {name: torch.tensor([0]) for name in ("global_end_index", "local_end_index")}
    return {"k": empty, "v": empty.clone(), **ends}


def prepare_imports(folder: Path) -> None:
    """Let the checkout's packages be imported without the libraries that only its training and codec need."""
    sys.path.insert(0, str(folder))
    for package in ("wan", "wan.modules", "pipeline"):  # without running their __init__, which imports everything
        module = types.ModuleType(package)
        module.__path__ = [str(folder.joinpath(*package.split(".")))]
        sys.modules[package] = module
    stand_in("demo_utils")
    stand_in(
        "demo_utils.memory", gpu=None, get_cuda_free_memory_gb=None, DynamicSwapInstaller=None,
        move_model_to_device_with_memory_preservation=None,
    )  # fmt: skip
    stand_in("wan.modules.tokenizers", HuggingfaceTokenizer=None)
    stand_in("wan.modules.vae", _video_vae=None)
    stand_in("wan.modules.t5", umt5_xxl=None)
    stand_in("diffusers")
    stand_in("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda function: function)
    stand_in("diffusers.models")
    stand_in("diffusers.models.modeling_utils", ModelMixin=torch.nn.Module)


def stand_in(module: str, **names: Any) -> None:
    sys.modules[module] = types.ModuleType(module)
    vars(sys.modules[module]).update(names)


def on_cpu(*modules: types.ModuleType) -> None:
    """Give the original torch's attention in float32 in place of the GPU library's."""

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()

    for module in modules:
        for name in ("attention", "flash_attention"):
            if hasattr(module, name):
                setattr(module, name, attention)


def keep_latents(pipeline: Any, found: list[Tensor]) -> None:
    """Note what the pipeline gives its codec."""

    def decode(latents: Tensor, use_cache: bool = False) -> Tensor:
        found[:] = [latents]
        return latents

    pipeline.vae = types.SimpleNamespace(decode_to_pixel=decode)


@contextlib.contextmanager
def drawn_from(order: list[Tensor]) -> Iterator[None]:
    """Let torch.randn_like hand out this noise."""
    rest, drawn = iter(order), torch.randn_like
    torch.randn_like = lambda like: next(rest).reshape(like.shape)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn_like = drawn  # type: ignore[assignment]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The originals print every step."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    main()

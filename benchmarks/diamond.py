"""DIAMOND's published architecture beside a native world: the same frames, the same training time, one table.

    python -m benchmarks.diamond --data DIR --world RUN --out OUT         as long as RUN was trained, its codec included
    python -m benchmarks.diamond --data DIR --out OUT --minutes 120       trains a native world, too, in OUT/world

Trains DIAMOND's denoiser (worldmodel/train/diamond.py) in OUT/diamond. The judge tries both from the same moments of
equal held-out episodes, both on torch in bfloat16. Frames per second are measured on this CPU, all ways taking turns:
DIAMOND, three Euler steps, on torch, compiled too, and as a graph on the backends that play exported worlds; the world
exported, on its default backend, and on torch. OUT/diamond.md and .json: the judge's figures, the speeds, and who is
nearer to the real game. Begun again, it goes on where it was stopped; speeds are measured anew.

DIAMOND takes no prompts and has no figures of them. Needs the train extra, and memory for all recorded frames.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from benchmarks.kept import once
from export.onnx import TRACED_PLAYERS, export_graphs, trace
from export.pack import TEXTS, Card, Start, load_world, pack
from runtime.backends import ON_GPU, load_backend, most_threads, usable_backends
from runtime.backends.graphs import EngineMaker, aligned_zeros
from runtime.backends.onnxruntime import OrtMaker
from runtime.backends.openvino import OpenVinoMaker, precisions
from runtime.cli.bench import Game
from runtime.errors import UsageError
from runtime.machine import cores, cpu_name
from runtime.noise import tick_noise
from runtime.onnx_header import read_header
from runtime.world import World
from worldmodel.errors import DatasetError, WorldloopError
from worldmodel.families.diamond import DiamondWorld
from worldmodel.families.family import State, zero_state
from worldmodel.train.candidates import cell, line, table
from worldmodel.train.codec import train_codec
from worldmodel.train.dataset import Dataset, DatasetInfo, write_json
from worldmodel.train.diamond import BATCH, PlayedDiamond, train_diamond
from worldmodel.train.evaluate import Settings, evaluate, record_fresh
from worldmodel.train.plan import plan_world, read_plan
from worldmodel.train.playable import Playable, TorchWorld
from worldmodel.train.run import spent
from worldmodel.train.team import Team
from worldmodel.train.world import train_world

CODEC_SHARE = 0.25  # of the minutes, where the native world is trained here
STAGES = ("codec", "decoder", "world")  # of a native world
WORLD_BATCH = 16  # clips, as `worldloop train world` has it
WARM_UP, TICKS, ROUNDS = 3, 10, 5  # frames before the clock runs; frames of a turn; turns of each player
IDEAL = {  # what a figure is best at, see docs/evaluation.md; of the judge's others nothing is better or worse
    "psnr_next": math.inf, "ssim_next": 1, "perceptual_next": 0, "follow": 1, "keys_share": 1, "keys_over_chance": 1,
    "flow_ratio": 1, "motion_ratio": 1, "shake": 1, "turn_sign": 1, "turn_speed": 1, "response_ticks": 0, "coasts": 1,
    "stands": 1, "on_road": 1, "finds_road": 1, "strays": 1, "speed_ratio": 1, "bends_ratio": 1, "stall": 0,
    "drift_ratio": 0, "frechet_ratio": 0, "frechet_end": 0, "frechet_kept": math.inf, "collapsed": 0, "memory": 1,
    "diversity": 1, "frechet_first": 0, "frechet_last": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What to train and try. world: a trained run folder; without one, it is trained here. minutes: of training;
    without a number, as many as the world had.
    """

    data: Path
    out: Path
    world: Path | None = None
    minutes: float | None = None
    batch: int = BATCH
    ticks: int = 2000
    rollouts: int = 16
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the recording that both learn from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", type=Path, help="run folder of a native world (default: train one)")
    parser.add_argument("--minutes", type=float, help="of training (default: the world's, its codec's included)")
    parser.add_argument("--batch", type=int, default=BATCH, help="segments per step of DIAMOND's training")
    parser.add_argument("--ticks", type=int, default=2000, help="of the long drive")
    parser.add_argument("--rollouts", type=int, default=16, help="players of every trial")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.world is None and not given.minutes:
        parser.error("give --minutes, or a trained --world")
    try:
        run(Plan(**vars(given)))
    except WorldloopError as error:
        print(f"benchmarks.diamond: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(plan: Plan) -> dict[str, Any]:
    """Train what is not trained yet, try both, measure both; write the table."""
    native = plan.world or trained_world(plan)
    spec, info = read_plan(native), DatasetInfo.read(plan.data)
    shown = info.adapter, info.height, info.width, tuple(info.actions)
    if shown != (spec.environment, spec.height, spec.width, spec.actions):
        raise DatasetError(f"{plan.data} shows {shown}: another game, size or keys than the world in {native} has")
    diamond = plan.out / "diamond"
    seconds = {"world": sum(spent(native, stage) for stage in STAGES)}
    minutes = plan.minutes or seconds["world"] / 60
    if minutes <= 0:
        raise UsageError(f"{native} does not say how long it was trained (no world.json): give --minutes")
    if spent(diamond, "denoiser") < 60 * minutes:
        train_diamond(plan.data, diamond, minutes, plan.batch, plan.seed, resume=True)
    if not Team.join().leads:
        return {}
    seconds["DIAMOND"] = spent(diamond, "denoiser")
    ours = TorchWorld(native)
    theirs = PlayedDiamond.load(diamond, context=ours.context)
    settings = Settings(
        info.adapter, info.height, plan.seed, plan.ticks, plan.rollouts, info.options.get("env_id", "")
    )  # fmt: skip
    reports = {
        "world": judged(ours, settings, plan.out / "world-report", native / "world.safetensors"),
        "DIAMOND": judged(theirs, settings, plan.out / "diamond-report", diamond / "denoiser.safetensors"),
    }
    speeds = measured(theirs.world.cpu(), native)
    found = {
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(plan).items()},
        "machine": {"cpu": cpu_name(), "cores": cores(), "threads": most_threads()},
        "recorded": len(Dataset(plan.data)),
        "seconds": seconds,
        "weights": {"world": _weights(ours.world), "DIAMOND": _weights(theirs.world)},
        "reports": reports,
        "nearer": nearer(reports),
        "speeds": speeds,
        "speed_ratio": fastest(speeds, "world") / fastest(speeds, "DIAMOND"),
    }
    write_json(plan.out / "diamond.json", found)
    (plan.out / "diamond.md").write_text(text(found))
    print(text(found))
    return found


def trained_world(plan: Plan) -> Path:
    """A native world, trained on the recording alone for plan.minutes, its codec included."""
    if plan.minutes is None:
        raise UsageError("give the minutes of training, or a trained world")
    folder, codec_minutes = plan.out / "world", CODEC_SHARE * plan.minutes
    spec = plan_world(plan.data, folder, [])
    if spent(folder, "codec") < 60 * codec_minutes:
        train_codec(spec, plan.data, folder, codec_minutes, seed=plan.seed, resume=True)
    if spent(folder, "world") < 60 * (plan.minutes - codec_minutes):
        train_world(spec, plan.data, folder, plan.minutes - codec_minutes, WORLD_BATCH, plan.seed, resume=True)
    return folder


def _weights(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


# -- the judge --------------------------------------------------------------------------------------------------------


def judged(world: Playable, settings: Settings, report: Path, weights: Path) -> dict[str, Any]:
    """An evaluation of these weights on episodes recorded once for all; kept in its report's folder."""
    held_out = report.parent / f"held-out-{settings.rollouts}"
    record_fresh(settings, held_out)
    asked = vars(settings) | {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), "context": world.context}

    def tell(doing: str) -> None:
        print(f"{report.name}: {doing}", file=sys.stderr)

    found = once(report / "judged.json", asked, lambda: evaluate(world, settings, held_out, report, tell))
    for figures in found["scenes"].values():
        stretches = [stretch for stretch in figures.get("drift", []) if "frechet" in stretch]
        for name, stretch in zip(("frechet_first", "frechet_last"), (*stretches[:1], *stretches[-1:]), strict=False):
            figures |= {name: stretch["frechet"], f"{name}_real": stretch["frechet_real"]}
            figures["intervals"][name] = stretch["frechet_interval"]
    return found


def nearer(reports: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By scene and figure, who is nearer to what is best. sure: whether the intervals are apart, None without any."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for scene, ours in reports["world"]["scenes"].items():
        theirs = reports["DIAMOND"]["scenes"][scene]
        found[scene] = {}
        for figure, ideal in IDEAL.items():
            values = [figures.get(figure) for figures in (ours, theirs)]
            if any(value is None or math.isnan(value) for value in values):
                continue
            away = [-value if ideal == math.inf else abs(value - ideal) for value in values]
            who = "equal" if away[0] == away[1] else "world" if away[0] < away[1] else "DIAMOND"
            spans = [figures["intervals"].get(figure) for figures in (ours, theirs)]
            apart = None if None in spans else spans[0][1] < spans[1][0] or spans[1][1] < spans[0][0]
            found[scene][figure] = {"nearer": who, "sure": apart}
    return found


# -- speed ------------------------------------------------------------------------------------------------------------

Arrays = dict[str, np.ndarray]
Move = Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, Any]]  # state, action, noise to frame and next state


class Player:
    """Somebody who plays DIAMOND, pressing keys at random."""

    def __init__(self, world: DiamondWorld, move: Move, state: Any) -> None:
        self.about, self.move, self.state = world.about, move, state
        self.tick, self.rng = 0, np.random.default_rng(0)

    def play(self, ticks: int, what: str = "") -> list[float]:
        """Seconds of each frame, its noise included, as `Game.play`."""
        seconds = []
        for _ in range(ticks):
            action = np.zeros((1, self.about.action_dim), np.float32)
            action[0, self.rng.integers(self.about.action_dim)] = 1
            began = time.perf_counter()
            noise = tick_noise(0, self.tick, (1, *self.about.noise_shape))
            self.frame, self.state = self.move(self.state, action, noise)
            seconds.append(time.perf_counter() - began)
            self.tick += 1
        return seconds


def measured(world: DiamondWorld, native: Path) -> list[dict[str, Any]]:
    """Frames per second of every way to play either, taking turns, so that all meet the machine in the same moods."""
    torch.set_num_threads(most_threads())
    with tempfile.TemporaryDirectory() as scratch:
        print("exporting, then measuring speeds", file=sys.stderr)
        players = [("DIAMOND", *way) for way in diamond_ways(world, Path(scratch))]
        players += [("world", *way) for way in world_ways(native, Path(scratch))]
        for *_, player in players:
            player.play(WARM_UP, "warm-up")
        seconds: list[list[float]] = [[] for _ in players]
        for _ in range(ROUNDS):
            for took, (who, *_, player) in zip(seconds, players, strict=True):
                took += player.play(TICKS, who)
    medians = [statistics.median(took) for took in seconds]
    return [
        {"who": who, "backend": backend, "precision": precision, "frame_ms": 1000 * took, "frames_per_s": 1 / took}
        for took, (who, backend, precision, _) in zip(medians, players, strict=True)
    ]


def fastest(speeds: list[dict[str, Any]], who: str) -> float:
    """Frames per second."""
    return max(float(way["frames_per_s"]) for way in speeds if way["who"] == who)


def diamond_ways(world: DiamondWorld, folder: Path) -> Iterator[tuple[str, str, Player]]:
    """Backend, precision and a player of it: all that can play DIAMOND on this CPU."""
    for precision in ("fp32", "bf16"):
        yield "torch", precision, Player(world, on_torch(world, precision), zero_state(world, 1))
        if shutil.which("g++"):
            other = copy.deepcopy(world)
            other.denoiser.inner_model.compile(dynamic=False)
            yield "torch, compiled", precision, Player(other, on_torch(other, precision), zero_state(other, 1))
    graph = write_graph(world, folder / "diamond.onnx")
    core, threads = ov.Core(), most_threads()
    makers = [OpenVinoMaker(core, threads, precision) for precision in precisions(core)]
    for maker in (*makers, OrtMaker(threads, "fp32")):
        state = {name: tensor.numpy() for name, tensor in zero_state(world, 1).items()}
        yield maker.name, maker.precision, Player(world, on_graph(world, graph, maker), state)


def on_torch(world: DiamondWorld, precision: str) -> Move:
    """By the module itself; bf16 as in training and in the judge's trials."""

    @torch.inference_mode()
    def move(state: State, action: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, State]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            frame, state = world(state, torch.from_numpy(action), torch.empty(0), torch.from_numpy(noise))
        return frame.numpy(), state

    return move


def on_graph(world: DiamondWorld, graph: Path, maker: EngineMaker) -> Move:
    """By an engine of the graph, with the settings that exported worlds are played with."""
    engine = maker.make(graph, read_header(graph.read_bytes(), graph.name), 1, False)
    shape = (1, world.about.height, world.about.width, 3)

    def move(state: Arrays, action: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, Arrays]:
        frame = aligned_zeros(shape, np.dtype(np.uint8))
        after = {name: aligned_zeros(array.shape, array.dtype) for name, array in state.items()}
        inputs = {"action": action, "noise": noise, **{f"state.{name}": array for name, array in state.items()}}
        engine.run(inputs, {"frame": frame, **{f"next.{name}": array for name, array in after.items()}})
        return frame, after

    return move


class DiamondGraph(nn.Module):
    """A tick over a flat list of tensors, in the order of the state; there is no prompt."""

    def __init__(self, world: DiamondWorld) -> None:
        super().__init__()
        self.world = world

    def forward(self, action: Tensor, noise: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        frame, after = self.world(dict(zip(self.world.state_shapes(), state, strict=True)), action, noise, noise)
        return frame, *after.values()


@torch.no_grad()
def write_graph(world: DiamondWorld, path: Path) -> Path:
    """Three Euler steps and all that is around them as one graph, traced as those of native worlds."""
    state, about = zero_state(world, TRACED_PLAYERS), world.about
    given = torch.zeros(TRACED_PLAYERS, about.action_dim), torch.zeros(TRACED_PLAYERS, *about.noise_shape)
    inputs, outputs = (["action", "noise", *(f"state.{n}" for n in state)], ["frame", *(f"next.{n}" for n in state)])
    path.write_bytes(trace(DiamondGraph(world), (*given, *state.values()), inputs, outputs).SerializeToString())
    return path


def world_ways(native: Path, folder: Path) -> Iterator[tuple[str, str, Game]]:
    """The same of the world's run, exported as worlds are shipped."""
    card = Card(dict.fromkeys(TEXTS, "benchmark"), True, ["benchmark"], [Start("driven", seed=1, ticks=1)])
    model = load_world(native)
    pack(model, card, export_graphs(model), folder / "native.world", "int8")
    world = World.open(str(folder / "native.world"))
    best = next(name for name in usable_backends(world) if name not in ON_GPU)
    for name in dict.fromkeys((best, "torch")):
        backend = load_backend(world, name, threads=most_threads())
        yield name, backend.precision, Game(world, backend, seed=0)


# -- what is shown ----------------------------------------------------------------------------------------------------


def text(found: dict[str, Any]) -> str:
    """The tables in Markdown."""
    reports, names = found["reports"], ("world", "DIAMOND")
    columns = [name for name in names for _ in reports[name]["scenes"]]
    shown = [figures for name in names for figures in reports[name]["scenes"].values()]
    lines = [f"Both trained on {found['recorded']:,} recorded frames.", "", table(reports).rstrip()]
    for figure in ("frechet_first", "frechet_last"):
        if any(figure in figures for figures in shown):
            lines.append(line([f"`{figure}`", *(cell(f, figure) for f in shown), cell(shown[0], f"{figure}_real")]))
    rows = {
        "minutes of training": {name: f"{seconds / 60:.1f}" for name, seconds in found["seconds"].items()},
        "weights, million": {name: f"{count / 1e6:.2f}" for name, count in found["weights"].items()},
        "frames per second, fastest": {name: f"{fastest(found['speeds'], name):.1f}" for name in names},
    }
    lines += [line([title, *(row[name] for name in columns), ""]) for title, row in rows.items()]
    lines += ["", "Next frames of the real game: the true ones through the world's codec.", ""]
    for scene, verdicts in found["nearer"].items():
        lines += [f"{scene}: {sentence(verdicts)}", ""]
    lines += [line(["", "backend, precision", "frame, ms", "frames per second"]), line(["---"] * 4)]
    for way in found["speeds"]:
        speed = f"{way['frame_ms']:.1f}", f"{way['frames_per_s']:.1f}"
        lines.append(line([way["who"], f"{way['backend']}, {way['precision']}", *speed]))
    machine, ratio = found["machine"], found["speed_ratio"]
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, one player; medians."]
    lines += [f"Each by its fastest way, the world makes {ratio:.1f} times DIAMOND's frames per second."]
    return "\n".join(lines) + "\n"


def sentence(verdicts: dict[str, dict[str, Any]]) -> str:
    """Who is nearer to the real game in what."""
    parts = []
    for who in ("world", "DIAMOND", "equal"):
        mine = {name: verdict for name, verdict in verdicts.items() if verdict["nearer"] == who}
        named = ", ".join(name + ("*" if verdict["sure"] is False else "") for name, verdict in mine.items())
        title = who if who == "equal" else f"{who} nearer to the real game"
        parts.append(f"{title} in {len(mine)} of {len(verdicts)}" + (f" ({named})" if named else ""))
    return "; ".join(parts) + ". * intervals overlap: may be chance."


if __name__ == "__main__":
    main()

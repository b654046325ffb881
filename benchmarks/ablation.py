"""Which of the papers' techniques help a small world? Arms of equal training time on the same recording and seed.

    python -m benchmarks.ablation --data DIR --codec RUN --out OUT --minutes 30

Every arm adds one thing to the one before. All begin as the same world, trained from nothing for --minutes on recorded
histories, and are trained for as long again. The first two go on with recordings; for all others, half of the time is
that of the second arm, which then is their teacher, and the other half is distillation:

    teacher-forcing   histories as recorded, no sink
    noisy-history     histories with errors
    self-forcing      DMD on own roll-outs
    rolling-forcing   four frames in flight
    static-sink       the first frame is kept
    ema-sink          the sink averages what leaves the window
    re-dmd            samples count by the reward for motion

Begun again, it goes on where it was stopped. OUT/ablation.md and .json: drift to --ticks, motion kept, keys followed,
response, tick time; OUT/driven.png, OUT/drift.png: pictures. Worlds are played as a session plays them: when keys
change, frames in flight are made anew. Needs the train extra; cars only, whose driver judges by the picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.kept import once
from worldmodel.tick import State, count_noises, reprime, tick
from worldmodel.train.dataset import Dataset, write_json
from worldmodel.train.distil.train import train_distil
from worldmodel.train.drift import drift
from worldmodel.train.evaluate import Settings, follow, record_fresh
from worldmodel.train.evaluate_car import closed_loop, steering
from worldmodel.train.judge.judge import Judge
from worldmodel.train.pictures import save_strip
from worldmodel.train.playable import Frames, Held, TorchGame, TorchWorld
from worldmodel.train.run import spent

ROLLING = "schedule.sigmas=((0.25,0.5,0.75,1.0),)"
COLUMNS = {  # of the table: title, figure
    "drift, end over begin": "frechet_end", "drift, worst over begin": "frechet_ratio", "collapsed": "collapsed",
    "motion kept": "flow_ratio", "keys followed": "keys_share", "turns followed": "follow",
    "response, ticks": "response_ticks", "turn speed": "turn_speed", "on the road": "on_road",
    "tick, CPU ms": "tick_ms", "re-primed tick, CPU ms": "reprime_ms", "steps": "steps",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One row of the table: a method, and what its student's spec says otherwise than the base's."""

    method: str
    changes: tuple[str, ...] = ()

    @property
    def taught(self) -> bool:
        return self.method not in ("teacher-forcing", "noisy-history")


ARMS = {
    "teacher-forcing": Arm("teacher-forcing"),
    "noisy-history": Arm("noisy-history"),
    "self-forcing": Arm("self-forcing"),
    "rolling-forcing": Arm("rolling-forcing", (ROLLING,)),
    "static-sink": Arm("rolling-forcing", (ROLLING, "sink_keep=1.0")),
    "ema-sink": Arm("rolling-forcing", (ROLLING, "sink_keep=0.99")),
    "re-dmd": Arm("reward-forcing", (ROLLING, "sink_keep=0.99")),
}
NO_SINK = "sink_keep=0.0"  # then what left the window last is all that is remembered beside it


@dataclass(frozen=True)
class Plan:
    """What all arms share. minutes: of the base, and of every arm."""

    data: Path
    codec: Path
    out: Path
    minutes: float
    batch: int
    ticks: int
    rollouts: int
    seed: int
    changes: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a recording of the racer")
    parser.add_argument("--codec", type=Path, required=True, help="a run folder with spec.json and a trained codec")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30, help="of training for the base, and for every arm")
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--ticks", type=int, default=2000, help="of the long drive")
    parser.add_argument("--rollouts", type=int, default=16, help="players of every trial")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--set", nargs="*", default=[], help="fields of the spec, as generator.depth=2")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plan = Plan(
        given.data, given.codec, given.out, given.minutes, given.batch, given.ticks, given.rollouts, given.seed,
        (NO_SINK, *given.set),
    )  # fmt: skip
    run(plan, given.arms)


def run(plan: Plan, arms: Sequence[str]) -> dict[str, Any]:
    """Train and try the arms; write the table and the pictures anew after each."""
    held_out = plan.out / "held-out"
    record_fresh(_settings(plan), held_out)
    base = _trained(plan, "base", Arm("teacher-forcing"), plan.codec, None, plan.minutes)
    found: dict[str, Any] = {}
    for name in arms:
        arm = ARMS[name]
        if arm.taught:
            teacher = _trained(plan, "teacher", ARMS["noisy-history"], base, base, plan.minutes / 2)
            folder = _trained(plan, name, arm, teacher, teacher, plan.minutes / 2)
        else:
            folder = _trained(plan, name, arm, base, base, plan.minutes)
        found[name] = _tried(plan, folder, held_out)
        write_json(plan.out / "ablation.json", {"settings": _said(plan), "arms": found})
        (plan.out / "ablation.md").write_text(table(plan, found))
        _draw(plan.out, found)
    return found


def _said(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in vars(plan).items() if name not in ("data", "codec", "out")}


def _settings(plan: Plan) -> Settings:
    size = json.loads((plan.codec / "spec.json").read_text())["height"]
    return Settings("car_racing", size, plan.seed, plan.ticks, plan.rollouts)


def _trained(plan: Plan, name: str, arm: Arm, teacher: Path, init: Path | None, minutes: float) -> Path:
    """A run folder that has been trained for so many minutes."""
    folder = plan.out / name
    own = {change.partition("=")[0] for change in arm.changes}
    changes = [change for change in plan.changes if change.partition("=")[0] not in own] + list(arm.changes)
    weights = init / "world.safetensors" if init else None
    if spent(folder, "world") < 60 * minutes:
        train_distil(
            arm.method, teacher, plan.data, folder, minutes, plan.batch, plan.seed, resume=True, init=weights,
            changes=changes,
        )  # fmt: skip
    return folder


# -- trials -----------------------------------------------------------------------------------------------------------


class PlayedWorld(TorchWorld):
    """A run's world as a session plays it: changed keys drop the frames in flight (rollback)."""

    def begin(
        self, frames: NDArray[np.uint8], actions: NDArray[np.bool_], prompts: Sequence[str], seed: int
    ) -> TorchGame:
        game = super().begin(frames, actions, prompts, seed)
        return PlayedGame(self, game.state, game.prompt, game.generator)


class PlayedGame(TorchGame):
    """A `PlayedWorld` being played."""

    before: Held | None = None

    @torch.no_grad()
    def tick(self, held: Held) -> Frames:
        changed = np.ones(len(held), bool) if self.before is None else (held != self.before).any(1)
        self.before = held
        if self.playable.spec.schedule.frames == 1 or not changed.any():
            return super().tick(held)
        spec, device, state = self.playable.spec, self.playable.device, self.state
        noises = count_noises(spec.schedule.reprime)
        noise = torch.randn(len(held), noises, *spec.latent_shape, generator=self.generator, device=device)
        action = torch.from_numpy(held).to(device).float()
        with self.playable.precision():
            anew, after = reprime(self.playable.world, state, action, self.prompt, noise)
        steady = super().tick(held)
        chosen = torch.from_numpy(changed).to(device)
        self.state = {name: _where(chosen, after[name], part) for name, part in self.state.items()}
        return np.where(changed[:, None, None, None], anew.cpu().numpy(), steady)


def _where(chosen: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.where(chosen.view(-1, *[1] * (first.dim() - 1)), first, second)


def _tried(plan: Plan, folder: Path, held_out: Path) -> dict[str, Any]:
    """An arm's figures, kept beside its weights."""
    asked = {"ticks": plan.ticks, "rollouts": plan.rollouts, "seed": plan.seed, "seconds": spent(folder, "world")}
    return once(folder / "trial.json", asked, lambda: _try(plan, folder, held_out))


def _try(plan: Plan, folder: Path, held_out: Path) -> dict[str, Any]:
    print(f"{folder.name}: trials", flush=True)
    world, judge, settings = PlayedWorld(folder), Judge.of("car_racing"), _settings(plan)
    dataset = Dataset(held_out)
    figures, _ = follow(world, dataset, dataset.episodes, settings, judge)
    turns, _ = steering(world, settings.size, settings.seed, settings.rollouts)
    driven, real, made = closed_loop(
        world, settings.size, settings.seed, settings.rollouts, plan.ticks, lambda text: None, judge
    )
    figures |= {name: driven[name] for name in ("on_road", "on_road_real", "speed_ratio", "stall")}
    figures |= drift(real, made, plan.ticks)
    figures |= {
        "response_ticks": max(turn["response_ticks"] for turn in turns.values()),
        "turn_speed": min(turn["speed"] for turn in turns.values()),
        "steps": json.loads((folder / "world.json").read_text())[-1]["step"],
        **_tick_ms(world),
    }
    save_strip(
        folder / "driven.png", [[shown[tick][0] for tick in sorted(made.shown)] for shown in (real.shown, made.shown)]
    )
    return figures


@torch.no_grad()
def _tick_ms(world: TorchWorld, ticks: int = 40) -> dict[str, float]:
    """Median CPU time of one player's tick on torch, nothing compiled or exported: steady, and after a changed key.

    CPU time, because arms are tried hours apart, beside whatever else the machine does.
    """
    spec, state = world.spec, _started(world)
    action, prompt = torch.zeros(1, len(spec.actions)), torch.zeros(1, spec.prompt_tokens, spec.prompt_dim)
    found = {}
    for name, move, plan in (("tick_ms", tick, spec.schedule.steady), ("reprime_ms", reprime, spec.schedule.reprime)):
        noise = torch.randn(1, count_noises(plan), *spec.latent_shape)
        took = []
        for _ in range(ticks):
            began = time.process_time()
            _, state = move(world.world, state, action, prompt, noise)
            took.append(1000 * (time.process_time() - began))
        found[name] = statistics.median(took)
    return found


def _started(world: TorchWorld) -> State:
    shape = (1, world.context, world.spec.height, world.spec.width, 3)
    keys = np.zeros((1, world.context, len(world.spec.actions)), bool)
    return world.begin(np.zeros(shape, np.uint8), keys, ["a road"], 0).state


# -- what is shown ----------------------------------------------------------------------------------------------------


def table(plan: Plan, found: dict[str, Any]) -> str:
    """The arms in Markdown."""
    lines = [
        f"Base and every arm: {plan.minutes:g} min of training each; {plan.rollouts} players, {plan.ticks} ticks.",
        "", f"| arm | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}",
    ]  # fmt: skip
    for name, figures in found.items():
        lines.append(f"| {name} | {' | '.join(_cell(figures.get(figure)) for figure in COLUMNS.values())} |")
    return "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"


def _draw(out: Path, found: dict[str, Any]) -> None:
    """The drives below each other, the real one first, and the drift of all arms over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    strips = [Image.open(out / name / "driven.png") for name in found]
    half = strips[0].height // 2
    sheet = Image.new("RGB", (strips[0].width, half * (len(strips) + 1)), "white")
    sheet.paste(strips[0].crop((0, 0, strips[0].width, half)), (0, 0))
    for row, strip in enumerate(strips, 1):
        sheet.paste(strip.crop((0, strip.height - half, strip.width, strip.height)), (0, row * half))
    sheet.save(out / "driven.png")
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for name, figures in found.items():
        middles = [(entry["from"] + entry["to"]) / 2 for entry in figures["drift"]]
        axes.plot(middles, [entry.get("frechet", entry["distance"]) for entry in figures["drift"]], "o-", label=name)
    real = next(iter(found.values()))["drift"]
    axes.plot(
        [(entry["from"] + entry["to"]) / 2 for entry in real],
        [entry.get("frechet_real", entry["distance_real"]) for entry in real], "k--", label="real game",
    )  # fmt: skip
    axes.set(xlabel="tick", ylabel="distance from real frames, in their spreads")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "drift.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()

"""Train a student by one of the methods of this package (`worldloop train distil`).

The student is a run folder of its own, which everything that takes a run takes, too: eval, export, further training.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.errors import CheckpointError, SpecError
from worldmodel.spec import WorldSpec
from worldmodel.tick import World
from worldmodel.train.distil import METHODS
from worldmodel.train.distil.setting import Method, Setting
from worldmodel.train.judge.judge import Judge
from worldmodel.train.plan import changed, read_plan
from worldmodel.train.preview import preview
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team
from worldmodel.train.world import compiled, prepare
from worldmodel.transformer.clip import clip_layer

# By teacher and student.
SHARED = ("height", "width", "actions", "camera", "tracks", "codec", "prompt_tokens", "prompt_dim")
OF_LATENTS = ("codec", "decoder", "heads")  # what knows latents and no generator: the student has the teacher's


def train_distil(
    method: str,
    teacher: Path,
    data: Path,
    out: Path,
    minutes: float,
    batch: int = 8,
    seed: int = 0,
    resume: bool = False,
    init: Path | None = None,
    changes: Sequence[str] = (),
    judge: Judge | None = None,
) -> dict[str, float]:
    """Train until `minutes` are spent. Writes OUT as a run folder with OUT/world.safetensors.

    teacher: a run folder; for methods without a teacher, the one whose codec and spec the student has.
    init: weights to begin from; without them a student of its teacher's size begins as the teacher, any other from
    nothing.
    changes: what differs from the teacher's spec.
    judge: without one, the one that ships for the environment, if one does.
    """
    if method not in METHODS:
        raise SpecError(f"no method {method!r}; there are {', '.join(METHODS)}")
    team = Team.join()
    torch.manual_seed(seed + 1000 * team.rank)
    spec = plan_student(teacher, out, changes, team)
    latents, student = prepare(spec, data, out, team)
    taught = METHODS[method].taught
    master = load_teacher(teacher, student, team) if taught else student
    if init is not None:
        load_weights(student.generator, init)
    elif taught and spec.generator == master.spec.generator:
        student.generator.load_state_dict(master.generator.state_dict())
    layer = compiled(clip_layer, minutes, team)
    setting = Setting(student, master, latents, batch, layer, judge or Judge.of(spec.environment))
    chosen = make(method, setting)
    run = Run(
        out,
        "world",
        student.generator,
        chosen.optimisers,
        Budget(minutes),
        team,
        ema=chosen.average,
        resume=resume,
        beside=chosen.beside,
        code=student.codec.code,
    )
    draw = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, run.step)) & 0x7FFFFFFF)

    def step(number: int) -> dict[str, Tensor]:
        with torch.autocast(team.device.type, torch.bfloat16):
            return chosen.step(number, draw)

    return run.loop(step, lambda step: preview(student, latents, out / f"world-{step:06d}.png"))


def make(method: str, setting: Setting) -> Method:
    """The method of that name."""
    module, name = METHODS[method].where
    made: Method = getattr(import_module(f"{__package__}.{module}"), name)(setting)
    return made


def plan_student(teacher: Path, out: Path, changes: Sequence[str], team: Team) -> WorldSpec:
    """The spec in OUT, or a new one after the teacher's; the teacher's codec becomes the student's."""
    if out.resolve() == teacher.resolve():
        raise SpecError(f"{out} is the teacher's own folder: give the student a new one with --out")
    if not (teacher / "spec.json").is_file():
        raise CheckpointError(
            f"{teacher} is no folder of a trained world; 'worldloop train distil-checkpoint' takes imported checkpoints"
        )
    told = read_plan(teacher)
    spec = changed(told, list(changes))
    other = [name for name in SHARED if getattr(spec, name) != getattr(told, name)]
    if spec.generator.action_history != told.generator.action_history:
        other.append("generator.action_history")
    if other:
        raise SpecError(f"--set {other[0]}: student and teacher must agree in it")
    if (out / "spec.json").exists():
        kept = read_plan(out)
        if changes and kept != spec:
            raise SpecError(f"{out}/spec.json says otherwise than --set: that option belongs to a new folder")
        return kept
    if team.leads:
        out.mkdir(parents=True, exist_ok=True)
        if not (teacher / "codec.safetensors").exists():
            raise CheckpointError(f"{teacher} has no codec.safetensors: it is no trained world's folder")
        for path in (teacher / f"{name}.safetensors" for name in OF_LATENTS):
            if path.exists():
                shutil.copyfile(path, out / path.name)
        (out / "spec.json").write_text(spec.to_json())
    team.wait_for_all()
    return spec


def load_teacher(run: Path, student: World, team: Team) -> World:
    """A run's world, frozen, with the student's codec."""
    teacher = World(read_plan(run))
    teacher.codec = student.codec
    load_weights(teacher.generator, run / "world.safetensors", code=teacher.codec.code)
    return teacher.to(team.device).requires_grad_(False).eval()

"""What checkpoints can be distilled from what, said before any weight is read; and what a run's folder notes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldmodel.errors import CheckpointError, SpecError
from worldmodel.families.family import FAMILIES, STATED
from worldmodel.families.importing import Import, plan_import
from worldmodel.families.wan_line import WanLine
from worldmodel.families.wan_world import WanWorldSpec
from worldmodel.train.distil.imported.scores import clip_cache
from worldmodel.train.run import write_whole


def students() -> list[str]:
    """The families that a student can be of: causal, of few steps, with a clean pass for the cache."""
    lines = {name: family.reader for name, family in FAMILIES.items()}
    few = {name: line for name, line in lines.items() if isinstance(line, WanLine) and line.guidance is None}
    return [name for name, line in few.items() if line.schedule.commit == "pass"]


def plan_student(checkpoint: Path, family: str | None, config: dict[str, Any]) -> Import:
    """Recognise the student, which must be causal and of few steps. family: as which it shall be played."""
    if family is not None:
        if family not in students():
            raise SpecError(f"--family {family}: a student is one of {', '.join(students())}")
        config = {**config, STATED: {"family": family, "file": checkpoint.stem}}
    plan = plan_wan(checkpoint, config)
    if plan.family not in students():
        raise SpecError(
            f"{checkpoint} is {plan.spec.title}, which takes many steps and can be a teacher. To make a student of it "
            f"say what it shall be played as: --family with one of {', '.join(students())}"
        )
    return plan


def plan_teacher(teacher: Path, student: Import, frames: int, config: dict[str, Any]) -> Import:
    """Recognise the teacher and see that it can judge clips of so many frames that the student makes."""
    plan = plan_wan(teacher, config)
    for name in ("out_channels", "text_dim", "patch"):
        ours, theirs = (getattr(one.spec.transformer, name) for one in (student, plan))
        if ours != theirs:
            raise SpecError(f"{teacher}: a teacher with {name} {theirs} cannot judge a student with {ours}")
    chunk = student.spec.cache.chunk
    if frames % chunk:
        raise SpecError(f"--frames {frames}: must be a multiple of {student.spec.title}'s blocks of {chunk} frames")
    clip_cache(plan.spec, frames)
    return plan


def plan_wan(checkpoint: Path, config: dict[str, Any]) -> Import:
    """A checkpoint of the Wan line that fits and is steered by text alone: there is no data but prompts."""
    plan = plan_import(checkpoint, config=config)
    spec = plan.spec
    if not isinstance(spec, WanWorldSpec) or not spec.transformer.text_dim or spec.transformer.steers((1, 1)):
        title = FAMILIES[plan.family].title
        raise SpecError(f"{checkpoint} is {title}: only what is steered by text alone learns from prompts alone")
    if not plan.fit.ok:
        raise CheckpointError(f"{checkpoint}: the weights do not fit {spec.title}: {plan.fit}")
    return plan


def note(out: Path, checkpoint: Path, plan: Import, lora: int | None, resume: bool) -> None:
    """Write OUT/config.json, by which `worldloop import` knows the student again; a run that goes on must agree."""
    spec, path = plan.spec, out / "config.json"
    told = {
        "num_heads": spec.transformer.heads,
        "latent_height": spec.rows,
        "latent_width": spec.columns,
        STATED: {"family": plan.family, "file": plan.found.file, "lora": lora or 0},
    }
    if path.exists():
        kept = json.loads(path.read_text())
        if resume and kept != told:
            raise SpecError(f"{path} says {kept}, this run {told}: another student belongs in a new folder")
    if out.resolve() == checkpoint.resolve().parent:
        raise SpecError(f"{out} is the checkpoint's own folder: give the student a new one with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda part: part.write_text(json.dumps(told, indent=1)))

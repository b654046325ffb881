"""Train an imported causal checkpoint from a teacher of its kind (`worldloop train distil-checkpoint`).

OUT/student.safetensors   all weights by Wan's names, or
OUT/lora.safetensors      the adapters alone, by PEFT's
OUT/config.json           what `worldloop import` has to know of either: family, heads, latent size
"""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from worldmodel.errors import SpecError
from worldmodel.families.family import build
from worldmodel.families.importing import Import
from worldmodel.families.wan_transformer import WanTransformer
from worldmodel.families.wan_world import LatentPreview, WanWorld
from worldmodel.prompt.umt5 import Umt5
from worldmodel.train.distil import METHODS
from worldmodel.train.distil.imported.lora import adapt, twin
from worldmodel.train.distil.imported.plan import note, plan_student, plan_teacher
from worldmodel.train.distil.imported.prompts import Prompts
from worldmodel.train.distil.imported.setting import Setting
from worldmodel.train.distil.setting import Method
from worldmodel.train.pictures import save_strip
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team

IMPORTED = {name: entry.imported for name, entry in METHODS.items() if entry.imported}
RATE, LORA_RATE = 2e-6, 1e-5  # Self Forcing's and LongLive's
CLIP = 21  # latent frames that Wan 2.1 was trained on


def train_distil_checkpoint(
    method: str,
    checkpoint: Path,
    teacher: Path,
    prompts: Path,
    text_encoder: Path,
    out: Path,
    minutes: float,
    lora: int | None = None,
    family: str | None = None,
    frames: int = CLIP,
    batch: int = 1,
    rate: float | None = None,
    avoid: str = "",
    seed: int = 0,
    resume: bool = False,
    init: Path | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train until `minutes` are spent; the arguments are those of the command.

    lora: rank of the adapters; None trains all weights. family: as which the checkpoint shall be played, where it is
    not to be recognised. avoid: what a teacher with guidance is guided away from. init: weights that an earlier run
    saved. config: sizes, as `plan_import` takes them.
    """
    if method not in IMPORTED:
        raise SpecError(f"no method {method!r} for imported checkpoints; there are {', '.join(IMPORTED)}")
    plan = plan_student(checkpoint, family, config or {})
    master = plan_teacher(teacher, plan, frames, config or {})
    team = Team.join()
    torch.manual_seed(seed + 1000 * team.rank)
    encoder = Umt5.load(text_encoder, plan.spec.prompt_rows, plan.spec.transformer.text_dim)
    encoder.model.to(team.device)
    told = Prompts.read(prompts, encoder, avoid)
    if team.leads:
        note(out, checkpoint, plan, lora, resume)
    team.wait_for_all()
    one_file = checkpoint.resolve() == teacher.resolve()
    student, knowing = load(plan, master, one_file, team.device)
    usual = LORA_RATE if lora else RATE
    setting = prepare(student, knowing, told, lora, frames, batch, usual if rate is None else rate)
    if init is not None:
        load_weights(setting.trained, init)
    chosen = make(method, setting)
    run = Run(
        out,
        "lora" if lora else "student",
        setting.trained,
        chosen.optimisers,
        Budget(minutes),
        team,
        ema=chosen.average,
        resume=resume,
        beside=chosen.beside,
    )

    def step(number: int) -> dict[str, Tensor]:
        """Draws follow from the step's number, so that a resumed run draws what it would have drawn."""
        drawing = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, number)) & 0x7FFFFFFF)
        return chosen.step(number, drawing)

    return run.loop(step, lambda number: preview(setting, out / f"{run.name}-{number:06d}.png"))


def load(plan: Import, master: Import, one_file: bool, device: torch.device) -> tuple[WanWorld, WanWorld]:
    """Student and teacher, frozen. Two worlds of one file have the same tensors, not copies of them."""
    weights = {name: tensor.to(device) for name, tensor in plan.read().items()}
    student = build(plan.family, plan.spec, weights, plan.where)
    if not one_file:
        weights = {name: tensor.to(device) for name, tensor in master.read().items()}
    return cast(WanWorld, student), cast(WanWorld, build(master.family, master.spec, weights, master.where))


def prepare(
    student: WanWorld, teacher: WanWorld, prompts: Prompts, lora: int | None, frames: int, batch: int, rate: float
) -> Setting:
    """What of student and critic is trained: adapters on frozen weights, which the critic shares with the teacher; or
    all weights, in copies of their own and in float32.
    """
    if lora:
        critic = twin(teacher.transformer)
        trained, learned = adapt(student.transformer, lora), adapt(critic, lora)
    else:
        critic = whole(teacher.transformer)
        student.transformer = student.stream.model = whole(student.transformer)
        trained, learned = cast(nn.Module, student.transformer), cast(nn.Module, critic)
    student.transformer.recompute = critic.recompute = True
    return Setting(student, trained, teacher, critic, learned, prompts, frames, batch, rate)


def whole(transformer: WanTransformer) -> WanTransformer:
    """A copy of which all can be trained."""
    return copy.deepcopy(transformer).float().requires_grad_(True)


def make(method: str, setting: Setting) -> Method:
    """The method of that name."""
    module, name = IMPORTED[method]
    made: Method = getattr(import_module(f"{__package__}.{module}"), name)(setting)
    return made


@torch.no_grad()
def preview(setting: Setting, path: Path) -> dict[str, float]:
    """Play the first prompts, as long as a clip; write three of the latent channels as a strip. Returns how far latents
    are spread, about 1 in these families, and how much of it changes from one frame to the next.
    """
    stream, like = setting.play(), setting.student.transformer.head.modulation
    draw = torch.Generator(device=like.device).manual_seed(7)
    prompt = setting.prompts.told(list(setting.prompts.texts[: setting.batch])).to(like)
    state, made = stream.prompted(stream.empty(len(prompt)), prompt), []
    for _ in range(setting.frames // stream.cache.chunk):
        noise = setting.noise(stream.noises(stream.plan(state)) * stream.cache.chunk, draw)[: len(prompt)]
        block, state = stream.tick(state, noise)
        made.append(block.float())
    latents, shown = torch.cat(made, 1), LatentPreview()
    save_strip(path, [list(row) for row in shown.to_bytes(shown.decode(latents, {})[0]).cpu().numpy()])
    return {"spread": float(latents.std()), "motion": float(latents.diff(dim=1).square().mean().sqrt())}

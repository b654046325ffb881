"""Golden cases of Open-Oasis: pictures encoded, frames generated one by one with actions, everything decoded."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worldmodel.families.family import zero_state
from worldmodel.families.loading import load_strictly
from worldmodel.families.open_oasis import OpenOasisSpec, OpenOasisWorld, remember, rename
from worldmodel.families.open_oasis_dit import DitSpec
from worldmodel.families.open_oasis_vae import VitVaeSpec

if TYPE_CHECKING:
    from worldmodel.families.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    """Kind `open_oasis`: the prompt's pictures, then a tick per further frame."""
    with torch.device("meta"):
        world = OpenOasisWorld(spec_of(case.meta)).eval()
    load_strictly(world, rename(case.weights), case.name)
    pictures, actions, noise = case.inputs["prompt_frames"], case.inputs["actions"], case.inputs["noise"]
    run, prompt = case.meta["run"], pictures.shape[1]
    latents = list(world.vae.encode(2 * pictures.flatten(0, 1) - 1).unflatten(0, pictures.shape[:2]).unbind(1))
    outputs = {"prompt_latents": torch.stack(latents, dim=1), "schedule.alphas_cumprod": world.spec.alphas_cumprod()}
    state = zero_state(world, len(pictures))
    for frame, latent in enumerate(latents):
        state = remember(state, latent, actions[:, frame])
    for frame in range(prompt, run["total_frames"]):
        steps = list(world.steps(state, actions[:, frame], noise[:, frame - prompt]))
        if frame in run["debug_frames"]:
            seen = world.context(state).v[:, -min(frame, world.spec.dit.max_frames - 1) :]
            for done, step in enumerate(steps):
                name = f"frame{frame}.step{len(steps) - done}"
                outputs[f"{name}.v"] = torch.cat([seen, step.v.unsqueeze(1)], dim=1)
                outputs[f"{name}.x_start"] = step.clean.unsqueeze(1)
                outputs[f"{name}.x"] = step.after.unsqueeze(1)
        latents.append(steps[-1].after)
        state = remember(state, latents[-1], actions[:, frame])
    outputs["latents"] = torch.stack(latents, dim=1)
    outputs["decoded"] = (world.vae.decode(outputs["latents"].flatten(0, 1)) + 1) / 2
    outputs["decoded"] = outputs["decoded"].unflatten(0, outputs["latents"].shape[:2])
    outputs["frames"] = outputs["decoded"].clamp(0, 1)
    return outputs


def spec_of(meta: dict[str, Any]) -> OpenOasisSpec:
    model, schedule = meta["model"], meta["schedule"]
    dit = {field.name: model["dit"][field.name] for field in fields(DitSpec)}
    return OpenOasisSpec(
        dit=DitSpec(**{**dit, "max_frames": meta["run"]["max_frames"]}),
        vae=VitVaeSpec(**model["vae"]),
        num_levels=schedule["num_levels"],
        start=schedule["start"],
        end=schedule["end"],
        tau=schedule["tau"],
        levels=tuple(sorted(schedule["levels"], reverse=True)),
        context_level=schedule["context_level"],
        noise_abs_max=schedule["noise_abs_max"],
    )

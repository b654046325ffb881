"""Golden cases of DIAMOND: frames from given noise, and the denoising steps of the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worldmodel.errors import SpecError
from worldmodel.families.diamond import DiamondSpec, DiamondWorld, from_bytes, to_bytes
from worldmodel.families.loading import load_strictly

if TYPE_CHECKING:
    from worldmodel.families.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    """Kind `diamond_step`: play `run.frames` ticks."""
    with torch.device("meta"):
        world = DiamondWorld(spec_of(case.meta)).eval()
    load_strictly(world.denoiser, case.weights, case.name)
    past, count = world.spec.num_steps_conditioning, case.meta["run"]["frames"]
    actions = torch.cat([case.inputs["act"], case.inputs["next_act"]], dim=1) if count > 1 else case.inputs["act"]
    state = {"pictures": to_bytes(case.inputs["obs"]), "actions": actions[:, : past - 1]}
    frames = []
    for frame in range(count):
        pressed = torch.nn.functional.one_hot(actions[:, past - 1 + frame], world.spec.num_actions).float()
        picture, state = world(state, pressed, torch.empty(0), case.inputs["noise"][:, frame : frame + 1])
        frames.append(from_bytes(picture))
    return {
        **_first_frame(world, case),
        "frames": torch.stack(frames, dim=1),
        "sigmas": torch.tensor(world.spec.sigmas),
    }


def spec_of(meta: dict[str, Any]) -> DiamondSpec:
    model, sampler = meta["model"], meta["sampler"]
    if sampler["s_churn"]:
        raise SpecError(f"sampler.s_churn must be 0, the noise it would need is not recorded: got {sampler['s_churn']}")
    return DiamondSpec(
        num_actions=model["num_actions"],
        img_channels=model["img_channels"],
        num_steps_conditioning=model["num_steps_conditioning"],
        cond_channels=model["cond_channels"],
        depths=tuple(model["depths"]),
        channels=tuple(model["channels"]),
        attn_depths=tuple(bool(attends) for attends in model["attn_depths"]),
        sigma_data=model["sigma_data"],
        sigma_offset_noise=model["sigma_offset_noise"],
        num_steps=sampler["num_steps"],
        sigma_min=sampler["sigma_min"],
        sigma_max=sampler["sigma_max"],
        rho=sampler["rho"],
        order=sampler["order"],
        height=meta["run"]["height"],
        width=meta["run"]["width"],
    )


def _first_frame(world: DiamondWorld, case: Case) -> dict[str, Tensor]:
    """The inside of the first frame's denoising steps."""
    outputs = {}
    steps = world.denoiser.steps(case.inputs["obs"], case.inputs["act"], case.inputs["noise"][:, 0])
    for n, step in enumerate(steps):
        outputs[f"frame0.step{n}.x"] = step.x
        outputs[f"frame0.step{n}.model_output"] = step.output
        outputs[f"frame0.step{n}.denoised_before_quantisation"] = step.clean
        outputs[f"frame0.step{n}.denoised"] = step.denoised
    return outputs

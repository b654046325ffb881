"""Golden cases of Waypoint-1: frames from given noise and controller inputs; and its picture autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from worldmodel.errors import SpecError
from worldmodel.families import waypoint_ae
from worldmodel.families.family import State
from worldmodel.families.loading import load_strictly
from worldmodel.families.waypoint import Step, clean_keys, filled, keep, state_shapes, steps, visible
from worldmodel.families.waypoint_ae import WaypointAe, fuse, to_unit
from worldmodel.families.waypoint_spec import WaypointSpec, spec_of
from worldmodel.families.waypoint_transformer import KeyValue, WaypointTransformer

if TYPE_CHECKING:
    from worldmodel.families.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    """Kind `waypoint`: given frames are committed, the others generated."""
    model = _model(case)
    spec, plan, inputs = model.spec, case.meta["run"], case.inputs
    batch, given = plan["batch"], plan["given_frames"]
    controls = _controls(inputs)
    prompt = inputs["prompt_embeds"] if "prompt_embeds" in inputs else torch.zeros(batch, 0, spec.prompt_embedding_dim)
    outputs: dict[str, Tensor] = {"sigmas": torch.tensor(spec.sigmas)}
    state = {name: torch.zeros(batch, *shape[1:], dtype=dtype) for name, (shape, dtype) in state_shapes(model).items()}
    latents: list[Tensor] = []
    keys: list[KeyValue] = []
    for frame in range(plan["frames"]):
        told = model.told(controls[frame].expand(batch, -1), prompt.expand(batch, -1, -1))
        if frame < given:
            latents.append(inputs["given_latents"][:, frame])
        else:
            walked = list(steps(model, state, inputs["noise"][:, frame - given], told))
            latents.append(walked[-1].after)
            if frame in plan["debug_frames"]:
                outputs |= _inside(spec, state, f"debug.frame{frame}", walked, plan["debug_layers"])
        keys = clean_keys(model, state, latents[-1], told)
        state = keep(spec, state, keys)
    outputs["latents"] = torch.stack(latents, dim=1)
    return outputs | _caches(spec, state, keys, plan["debug_layers"])


def _model(case: Case) -> WaypointTransformer:
    shapes = {name: tuple(tensor.shape) for name, tensor in case.weights.items()}
    schedule = case.meta["schedule"]
    told = {"scheduler_sigmas": schedule["sigmas"], "cache_pass_sigma": schedule["cache_pass_sigma"]}
    with torch.device("meta"):
        model = WaypointTransformer(spec_of(shapes, {**case.meta["model"]["config"], **told})).eval()
    load_strictly(model, case.weights, case.name)
    return model


def _controls(inputs: Mapping[str, Tensor]) -> Tensor:
    """[frames, controls]."""
    return torch.cat([inputs["mouse"], inputs["buttons"].float(), inputs["scroll"].float().sign().unsqueeze(1)], dim=1)


def _inside(spec: WaypointSpec, state: State, name: str, walked: list[Step], layers: list[int]) -> dict[str, Tensor]:
    """A frame's denoising steps, and which slots it saw. The public code gives a ring all slots of its window, and one
    slot at the end for the frame itself."""
    outputs = {}
    for n, step in enumerate(walked):
        outputs[f"{name}.step{n}.x"], outputs[f"{name}.step{n}.v"] = step.x.unsqueeze(1), step.velocity.unsqueeze(1)
    for layer in layers:
        seen = visible(spec, state["frame"], layer)[0].long()
        outputs[f"{name}.layer{layer}.visible_slots"] = _public_ring(
            spec, layer, seen, torch.ones(1, dtype=torch.int64)
        )
    return outputs


def _caches(spec: WaypointSpec, state: State, keys: list[KeyValue], layers: list[int]) -> dict[str, Tensor]:
    """The rings at the end, laid out as the public code does; `keys` are those of the last frame."""
    outputs = {}
    for layer in layers:
        name = f"debug.cache.layer{layer}"
        for part, kept, last in zip("kv", state[f"kv.{layer}"].unbind(1), keys[layer], strict=True):
            slots = _public_ring(spec, layer, kept.transpose(0, 1), last.unsqueeze(0))
            outputs[f"{name}.{part}"] = slots.transpose(0, 1).flatten(1, 2)
        written = filled(spec, state["frame"], layer)[0].long()
        outputs[f"{name}.written"] = _public_ring(spec, layer, written, torch.ones(1, dtype=torch.int64))
    return outputs


def _public_ring(spec: WaypointSpec, layer: int, slots: Tensor, own: Tensor) -> Tensor:
    """[slots, …] and [1, …] to [window + 1, …]: where a layer is dilated, most of its slots are never used."""
    window = spec.global_window if spec.is_global(layer) else spec.local_window
    return torch.cat([slots, slots.new_zeros(window - len(slots), *slots.shape[1:]), own])


def run_ae(case: Case) -> dict[str, Tensor]:
    """Kind `waypoint_ae`: pictures encoded, latents decoded; of the decoded pictures, some rows and columns."""
    spec = waypoint_ae.spec_of({name: tuple(tensor.shape) for name, tensor in case.weights.items()})
    if spec is None:
        raise SpecError(f"{case.name}: its weights are not those of a Waypoint-1 autoencoder")
    with torch.device("meta"):
        ae = WaypointAe(spec).eval()
    load_strictly(ae, fuse(case.weights), case.name)
    decoded = ae.decode(case.inputs["latents"])
    rows, columns = case.meta["run"]["stored_every"]
    height, width = case.meta["tensors"]["outputs"]["decoded_corner"]["shape"][-2:]
    return {
        "encoded": ae.encode(case.inputs["pictures"]),
        "decoded": decoded[..., ::rows, ::columns],
        "picture": to_unit(decoded)[..., ::rows, ::columns],
        "decoded_corner": decoded[..., :height, :width],
    }

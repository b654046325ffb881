"""Golden cases of the Wan 2.1 line: what the public code computed, computed here. See golden.py for the dispatch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from worldmodel.cache.attention import Context, Group, Seen, rotate
from worldmodel.cache.base import State, commit
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.first_pass_sink import FirstPassSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.condition.camera import path_views, projections
from worldmodel.condition.wan_actions import ActionSpec, told_rows
from worldmodel.errors import SpecError
from worldmodel.families.golden import Case
from worldmodel.families.loading import load_strictly
from worldmodel.families.wan_transformer import Conditions, WanSpec, WanTransformer
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable, Level, Plan
from worldmodel.schedule.rolling import Rolling
from worldmodel.schedule.sampler import Steer, Stream

GIVEN = Level(0.0, 0.0)  # the public code caches what it is given at timestep 0, whatever its context noise is

PADDED_TO = 128  # tokens, of a pass without a cache in the public code

# -- what meta.json says -----------------------------------------------------------------------------------------------


def wan_spec(case: Case) -> WanSpec:
    model = case.meta["model"]
    actions = model.get("action_config")
    return WanSpec(
        dim=model["dim"],
        ffn_dim=model["ffn_dim"],
        heads=model["num_heads"],
        layers=model["num_layers"],
        freq_dim=model["freq_dim"],
        in_channels=model["in_dim"],
        out_channels=model["out_dim"],
        patch=tuple(model["patch_size"][1:]),
        text_dim=model.get("text_dim", 0),
        image_dim=model.get("image_dim", 0),
        eps=model["eps"],
        qk_norm=model["qk_norm"],
        cross_attn_norm=model["cross_attn_norm"],
        camera="camera_branch" in model,
        actions=None if actions is None else action_spec(actions),
        rope_theta=model["rope"]["theta"],
    )


def action_spec(raw: dict) -> ActionSpec:
    """Of a module that is switched off, the sizes may be left out."""
    keys, mouse = raw["enable_keyboard"], raw["enable_mouse"]
    return ActionSpec(
        layers=tuple(raw["blocks"]),
        heads=raw["heads_num"],
        keys=raw["keyboard_dim_in"] if keys else 0,
        mouse=raw["mouse_dim_in"] if mouse else 0,
        embedding=raw["hidden_size"],
        mouse_dim=raw["mouse_hidden_dim"] if mouse else 0,
        keyboard_dim=raw["keyboard_hidden_dim"] if keys else 0,
        turned=raw["mouse_qk_dim_list" if "mouse_qk_dim_list" in raw else "rope_dim_list"][0],
        theta=raw["rope_theta"],
        rows_per_frame=raw["vae_time_compression_ratio"],
        window=raw["windows_size"],
        qk_norm=raw["qk_norm"],
        bias=raw["qkv_bias"],
    )


def flow_table(case: Case) -> FlowTable:
    schedule = case.meta["schedule"]
    return FlowTable(schedule["shift"], schedule["num_train_timesteps"])


def levels(case: Case, suffix: str = "") -> tuple[Level, ...]:
    """The timesteps of a schedule, as they are after warping; "_first_chunk" for the first block's own."""
    schedule, table = case.meta["schedule"], flow_table(case)
    if f"timesteps{suffix}" in schedule:
        return tuple(table.at(timestep) for timestep in schedule[f"timesteps{suffix}"])
    steps = schedule[f"denoising_step_list{suffix}"]
    return table.warp(tuple(steps)) if schedule["warp"] else tuple(table.at(step) for step in steps)


def commit_level(case: Case) -> Level:
    return flow_table(case).at(case.meta["run"]["context_noise"])


def transformer(case: Case) -> WanTransformer:
    spec = wan_spec(case)
    found = len({name.split(".")[1] for name in case.weights if name.startswith("blocks.")})
    if spec.layers != found:
        raise SpecError(f"golden case '{case.name}': model.num_layers is {spec.layers}, the weights have {found}")
    with torch.device("meta"):
        model = WanTransformer(spec)
    load_strictly(model, case.weights, f"golden case '{case.name}'")
    return model.eval()


def latent_size(case: Case) -> tuple[int, int]:
    size = case.meta["model"]["latent_height"], case.meta["model"]["latent_width"]
    found = {tuple(case.inputs[name].shape[-2:]) for name in ("noise", "latents") if name in case.inputs}
    if found - {size}:
        raise SpecError(
            f"golden case '{case.name}': model.latent_height and _width are {size}, the inputs have {found}"
        )
    return size


def prompt(case: Case) -> Tensor:
    """Prompt embeddings with as many rows as the network attends to, zero rows among them."""
    given = case.inputs["prompt_embeds"]
    return nnf.pad(given, (0, 0, 0, case.meta["model"]["text_len"] - given.shape[-2]))


def window(case: Case) -> int:
    """Frames that the cache holds; without a limit, or with one that is never reached, as many as the case is long."""
    run = case.meta["run"]
    limit = run.get("cache_frames", run.get("local_attn_size", case.meta["model"].get("local_attn_size", -1)))
    sink = run.get("sink_frames", run.get("sink_size", case.meta["model"].get("sink_size", 0)))
    whole = (run["num_blocks"] + run.get("initial_blocks", 0)) * run["frames_per_block"]
    longest = max(whole, sink + run["frames_per_block"])
    return min(limit, longest) if limit > 0 else longest


# -- the cases ---------------------------------------------------------------------------------------------------------


def run_wan_forward(case: Case) -> dict[str, Tensor]:
    """Kind `wan_forward`: one block-causal pass, then three that share a cache."""
    model, size, per_block = transformer(case), latent_size(case), case.meta["run"]["frames_per_block"]
    latents, timesteps, cross = (
        case.inputs["latents"],
        case.inputs["timesteps"],
        model.cross(prompt(case)),
    )
    batch, frames = latents.shape[:2]
    reach = case.meta["run"].get("local_attn_size", case.meta["model"].get("local_attn_size", -1))
    if 0 < reach < per_block:
        raise SpecError(f"golden case '{case.name}': local_attn_size must hold a block of {per_block}: got {reach}")
    groups: list[Group] = []
    for start in range(0, frames, per_block):
        full = start + per_block
        end, begin = min(full, frames), max(0, full - reach) if reach > 0 else 0
        own = model.turns(torch.arange(start, end)[None].expand(batch, -1), size)
        group = Group(slice(start, end), own, (Seen(slice(begin, end)),))
        groups.append(group if end == full else BeforePadding.of(group, model, full - end, frames))
    outputs = _traced(case, model, latents, timesteps)
    flow, _ = model(latents, model.levels(timesteps), tuple(groups), Conditions(cross))
    outputs |= {"nocache.flow": flow, "nocache.x0": _clean(case, latents, flow, timesteps)}

    cache = SinkWindow(window=2 * per_block, chunk=per_block)
    stream = Stream(model, cache, FewStep((Level(1.0, 1000.0),)), size)
    state = stream.empty(batch)
    for call in ("context", "block1", "block1_again"):
        latents, timesteps = case.inputs[f"cached.{call}_latents"], case.inputs[f"cached.{call}_timesteps"]
        reading = cache.read(state, per_block)
        own, whole = model.turns(reading.query_positions, size), slice(0, per_block)
        group = Group(whole, own, (Seen(whole),), model.context(state, reading, size))
        flow, fresh = model(latents, model.levels(timesteps), (group,), Conditions(cross))
        outputs |= {f"cached.{call}_flow": flow, f"cached.{call}_x0": _clean(case, latents, flow, timesteps)}
        if call != "block1":  # its place is taken by the next call
            state = commit(cache, state, fresh)
    for layer in range(model.spec.layers):
        outputs[f"cached.final_k.layer{layer}"] = cached(stream, state, "self", "k", layer)
        outputs[f"cached.final_v.layer{layer}"] = cached(stream, state, "self", "v", layer)
    return outputs


@dataclass(frozen=True)
class BeforePadding(Group):
    """The frames of a last block that is not full.

    The public mask lets them see as far as a full block goes. What is there is padding up to a multiple of 128 tokens,
    whose keys and values are zero.
    """

    padding: int = 0  # tokens seen

    @staticmethod
    def of(group: Group, model: WanTransformer, missing: int, frames: int) -> BeforePadding:
        """missing: frames that the block lacks. frames: of the video."""
        batch, _, tokens = group.turns.space.shape[:3]
        stores = model.empty_stores(batch, missing, tokens)
        beyond = Context({"self": stores["kv.self.k"]}, {"self": stores["kv.self.v"]}, missing)
        padding = min(missing * tokens, -frames * tokens % PADDED_TO)
        return BeforePadding(group.frames, group.turns, group.sees, beyond, padding)

    def mask(self, tokens: int) -> Tensor:
        frames = sum(seen.frames.stop - seen.frames.start for seen in self.sees)
        beyond = 0 if self.context is None else self.context.frames
        shown = torch.ones(1, 1, 1, (beyond + frames) * tokens, dtype=torch.bool)
        shown[..., self.padding : beyond * tokens] = False
        return shown


def _clean(case: Case, noisy: Tensor, flow: Tensor, timesteps: Tensor) -> Tensor:
    table = flow_table(case)
    sigma = torch.tensor([[table.at(t).sigma for t in row] for row in timesteps.tolist()], dtype=torch.float64)
    return (noisy.double() - sigma[..., None, None, None] * flow.double()).float()


def _traced(case: Case, model: WanTransformer, latents: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
    """The parts of a pass that can be had without running it."""
    embedded, six = model.embed_time(timesteps)
    return {
        "nocache.debug.patch_tokens": model.embed(latents).flatten(1, 2),
        "nocache.debug.text_embedding": model.embed_text(prompt(case)),
        "nocache.debug.time_embedding": embedded,
        "nocache.debug.time_projection": six,
    }


def few_step(case: Case) -> FewStep:
    own_first = "denoising_step_list_first_chunk" in case.meta["schedule"]
    return FewStep(levels(case), (levels(case, "_first_chunk"),) if own_first else ())


class Draws:
    """The noise of a case, handed out as the sampler asks: a block's start noise, then the noise between its steps."""

    def __init__(self, case: Case, chunk: int) -> None:
        self.chunk, self.inputs = chunk, case.inputs
        self.start = case.inputs["noise"]
        self.batch, blocks = self.start.shape[0], case.meta["run"]["num_blocks"]
        if self.start.shape[1] != blocks * chunk:
            raise SpecError(
                f"golden case '{case.name}': run.num_blocks is {blocks}, the noise has {self.start.shape[1]} frames"
            )
        # A first block with a step list of its own is not among the others; in a single step it uses no such noise.
        self.apart = "denoising_step_list_first_chunk" in case.meta["schedule"]
        self.taken: dict[int, int] = {}

    def take(self, block: int) -> Tensor:
        step = self.taken.get(block, 0)
        self.taken[block] = step + 1
        if step == 0:
            return self.start[:, block * self.chunk : (block + 1) * self.chunk]
        if self.apart and block == 0:
            between = self.inputs["first_block_step_noise"]
        else:
            between = self.inputs["step_noise"][block - self.apart]
        return between[step - 1].reshape(self.batch, self.chunk, *self.start.shape[2:])

    def tick(self, plan: Plan, block: int, renoise: bool) -> Tensor:
        """Everything that the tick which makes `block` consumes."""
        return torch.cat([self.start[:, :0], *(self.take(block + lane) for lane in plan.draws(renoise))], 1)


def generate(
    case: Case, stream: Stream, state: State, blocks: range, draws: Draws, steer: Steer | None = None
) -> tuple[list[Tensor], State]:
    """Make blocks; steer: per-frame conditions of the whole case."""
    made = []
    for block in blocks:
        plan = stream.plan(state)
        span = slice(block * draws.chunk, (block + plan.lanes) * draws.chunk)
        told = {name: part[:, span] for name, part in (steer or {}).items()}
        latents, state = stream.tick(state, draws.tick(plan, block, stream.schedule.renoise), told)
        made.append(latents)
    return made, state


def run_self_forcing(case: Case) -> dict[str, Tensor]:
    """Kinds `self_forcing_block`, `self_forcing_window`, `causal_forcing`: block by block, few steps."""
    run, model = case.meta["run"], transformer(case)
    if run.get("cfg_guidance") is not None:
        raise SpecError(f"golden case '{case.name}': run.cfg_guidance must be null: got {run['cfg_guidance']}")
    chunk = run["frames_per_block"]
    cache = SinkWindow(window(case), run["sink_size"], chunk)
    stream = Stream(model, cache, few_step(case), latent_size(case), commit_level=commit_level(case))
    draws = Draws(case, chunk)
    state = stream.prompted(stream.empty(draws.batch), prompt(case))
    given = []
    if run.get("initial_blocks", 0):
        given = list(case.inputs["initial_latent"].split(chunk, 1))
        for block in given:
            state = stream.append(state, block, level=GIVEN)
    made, state = generate(case, stream, state, range(run["num_blocks"]), draws)
    return {"latents": torch.cat(given + made, 1), **final_keys(stream, state)}


def run_camera(case: Case) -> dict[str, Tensor]:
    """Kind `causal_forcing_camera`: the same, with a second branch that sees the cameras."""
    run, model = case.meta["run"], transformer(case)
    chunk = run["frames_per_block"]
    cache = SinkWindow(window(case), run["sink_size"], chunk)
    stream = Stream(model, cache, few_step(case), latent_size(case), commit_level=commit_level(case))
    draws = Draws(case, chunk)
    state = stream.prompted(stream.empty(draws.batch), prompt(case))
    steer = {"camera": projections(case.inputs["viewmats"], case.inputs["Ks"])}
    made, state = generate(case, stream, state, range(run["num_blocks"]), draws, steer)
    last = model.spec.layers - 1
    return {
        "latents": torch.cat(made, 1),
        "viewmats_from_trajectory": path_views(run["trajectory"])[None],
        "final_rope_cache_k.last_layer": cached(stream, state, "self", "k", last),
        "final_rope_cache_v.last_layer": cached(stream, state, "self", "v", last),
        "final_camera_cache_k.last_layer": cached(stream, state, "camera", "k", last),
        "final_camera_cache_v.last_layer": cached(stream, state, "camera", "v", last),
    }


def run_longlive(case: Case) -> dict[str, Tensor]:
    """Kind `longlive`: a frame sink and a short window, with prompt switches that renew the cache."""
    run, model = case.meta["run"], transformer(case)
    chunk, last = run["frames_per_block"], model.spec.layers - 1
    relative = run["rope_positions"] != "absolute"
    if relative and run["sink_size"] > chunk:
        raise SpecError(
            f"golden case '{case.name}': run.sink_size is {run['sink_size']} and a block has {chunk} frames: with "
            "positions relative to the cache LongLive's code then reads more values than keys and computes nonsense"
        )
    technique = RelativeSinkWindow if relative else FirstPassSink
    cache = technique(window(case), run["sink_size"], chunk)
    stream = Stream(model, cache, few_step(case), latent_size(case), commit_level=commit_level(case))
    prompts, draws = prompt(case), Draws(case, chunk)
    switches = [frame // chunk for frame in run["switch_effective_at_frame"]]  # blocks
    state = stream.prompted(stream.empty(draws.batch), prompts[0])
    made: list[Tensor] = []
    outputs: dict[str, Tensor] = {}
    for number, (start, end) in enumerate(zip([0, *switches], [*switches, run["num_blocks"]], strict=True)):
        if number:
            state = stream.recache(state, prompts[number], keep_sink=run["global_sink"])
            outputs |= {
                f"recache{number}.{kind}.last_layer": cached(stream, state, "self", kind, last, relative)
                for kind in "kv"
            }
        blocks, state = generate(case, stream, state, range(start, end), draws)
        made += blocks
    return {"latents": torch.cat(made, 1), **outputs, **final_keys(stream, state, relative)}


def run_rolling_forcing(case: Case) -> dict[str, Tensor]:
    """Kind `rolling_forcing`: warm-up, steady state, drain."""
    run, model = case.meta["run"], transformer(case)
    chunk = run["frames_per_block"]
    cache = RollingSink(window(case), run["sink_frames"], chunk, run["max_attention_frames"])
    schedule = Rolling(levels(case))
    if run["num_blocks"] < schedule.blocks:
        raise SpecError(f"golden case '{case.name}': run.num_blocks must be at least the window's {schedule.blocks}")
    stream = Recorded(model, cache, schedule, latent_size(case), commit_level=commit_level(case))
    draws = Draws(case, chunk)
    state = stream.prompted(stream.empty(draws.batch), prompt(case))
    made, blocks = [], run["num_blocks"]
    for block in range(blocks):
        left = blocks - block
        plan = stream.plan(state) if left >= schedule.blocks else schedule.drain(left)
        latents, state = stream.tick(state, draws.tick(plan, block, True), plan=plan)
        made.append(latents)
    outputs = {"latents": torch.cat(made, 1)}
    for number, (noisy, timesteps, clean) in enumerate(stream.windows):
        outputs |= {f"window{number}.input": noisy, f"window{number}.timesteps": timesteps, f"window{number}.x0": clean}
    for layer in range(model.spec.layers):
        rotated = cached(stream, state, "self", "k", layer).unflatten(1, (-1, model_tokens(stream)))
        raw = cached(stream, state, "self", "k", layer, relative=True).unflatten(1, (-1, model_tokens(stream)))
        outputs[f"final_cache_k.layer{layer}"] = torch.cat([raw[:, :chunk], rotated[:, chunk:]], 1).flatten(1, 2)
    return outputs


class Recorded(Stream):
    """A stream that notes what every window saw and found."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.windows: list[tuple[Tensor, Tensor, Tensor]] = []

    def advance(self, plan: Plan, number: int, seen: Tensor, flow: Tensor, draws: Iterator[Tensor]) -> list[Tensor]:
        row = plan.rows[number]
        per_frame = [level for level in row for _ in range(self.cache.chunk)]
        sigma = torch.tensor([level.sigma for level in per_frame], dtype=torch.float64)[None, :, None, None, None]
        timesteps = torch.tensor([level.timestep for level in per_frame])[None].expand(seen.shape[0], -1)
        self.windows.append((seen, timesteps, (seen.double() - sigma * flow.double()).float()))
        return super().advance(plan, number, seen, flow, draws)


def run_reward_forcing(case: Case) -> dict[str, Tensor]:
    """Kind `reward_forcing`: the sink is a moving average of what leaves the window."""
    run, model = case.meta["run"], transformer(case)
    chunk, last = run["frames_per_block"], model.spec.layers - 1
    cache = EmaSink(window(case), run["sink_size"], chunk, run["sink_ema_alpha"])
    stream = Stream(model, cache, few_step(case), latent_size(case), commit_level=commit_level(case))
    draws = Draws(case, chunk)
    state = stream.prompted(stream.empty(draws.batch), prompt(case))
    made: list[Tensor] = []
    outputs: dict[str, Tensor] = {}
    updates = 0
    for block in range(run["num_blocks"]):
        full = block * chunk + chunk > cache.window
        blocks, state = generate(case, stream, state, range(block, block + 1), draws)
        made += blocks
        if full:  # the commit has fused what left
            updates += 1
            sink = state["kv.self.k"][:, last, : cache.sink].flatten(1, 2)
            outputs[f"sink_k.last_layer.update{updates}"] = sink
    for layer in range(model.spec.layers):
        for kind in "kv":
            outputs[f"final_cache_{kind}.layer{layer}"] = cached(stream, state, "self", kind, layer, relative=True)
    return {"latents": torch.cat(made, 1), **outputs}


def run_matrix_game2(case: Case) -> dict[str, Tensor]:
    """Kind `matrix_game2`: image-conditioned, steered by keyboard and mouse."""
    run, model = case.meta["run"], transformer(case)
    chunk, spec = run["frames_per_block"], model.spec.actions
    if spec is None:
        raise SpecError(f"{case.name}: model.action_config is missing")
    cache = SinkWindow(window(case), case.meta["model"]["sink_size"], chunk)
    stream = Stream(model, cache, few_step(case), latent_size(case), commit_level=commit_level(case))
    draws = Draws(case, chunk)
    state = stream.prompted(stream.empty(draws.batch), image=case.inputs["image_embeds"])
    frames = torch.arange(run["num_blocks"] * chunk)
    steer = {"channels": case.inputs["cond_concat"]}
    steer |= {name: told_rows(case.inputs[name], frames, spec) for name in spec.steers}
    made, state = generate(case, stream, state, range(run["num_blocks"]), draws, steer)
    outputs = {"latents": torch.cat(made, 1), **final_keys(stream, state)}
    for place, layer in enumerate(spec.layers):
        for store in ("mouse", "keyboard"):
            if f"kv.{store}.k" in state:
                keys = cached(stream, state, store, "k", place)  # [batch, frames · tokens, H, D]
                tokens = state[f"kv.{store}.k"].shape[3]
                by_place = keys.unflatten(1, (-1, tokens)).transpose(1, 2).flatten(0, 1)
                outputs[f"final_{store}_cache_k.layer{layer}"] = by_place
    return outputs


# -- caches as the public code lays them out ---------------------------------------------------------------------------


def cached(stream: Stream, state: State, store: str, kind: str, layer: int, relative: bool = False) -> Tensor:
    """A layer's store, sink first, then by age: [batch, frames · tokens, H, D]; keys rotated unless `relative`."""
    sink, filled = stream.cache.sink, int(state["cache.next"][0])  # type: ignore[attr-defined]
    held = state["cache.frame"][:, :filled]
    in_sink = torch.arange(held.shape[1]) < sink
    order = torch.where(in_sink, -1, held).argsort(dim=1, stable=True)
    values = torch.stack([one[layer][at] for one, at in zip(state[f"kv.{store}.{kind}"], order, strict=True)])
    if kind == "k" and not relative and store != "camera":
        turns = stream.model.turns(held.gather(1, order), stream.size)
        values = rotate(values, turns.space if store == "self" else turns.action)
    return values.flatten(1, 2)


def final_keys(stream: Stream, state: State, relative: bool = False) -> dict[str, Tensor]:
    layers = stream.model.spec.layers
    return {
        f"final_cache_k.layer{layer}": cached(stream, state, "self", "k", layer, relative) for layer in range(layers)
    }


def model_tokens(stream: Stream) -> int:
    return stream.size[0] * stream.size[1] // (stream.model.spec.patch[0] * stream.model.spec.patch[1])

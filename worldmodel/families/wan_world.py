"""A world made of a Wan transformer: how its family's checkpoints are read, and its tick.

The public checkpoints of this line share names and shapes; what makes a family is its cache, its schedule and what
steers it.
A tick shows one picture. The block that it belongs to is made when its first picture is due: few ticks are long, most
are free, and what the player asks for is heard once a block, as these models were trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from worldmodel.cache.base import Cache
from worldmodel.codec import taehv, wan_vae
from worldmodel.codec.streaming import StreamingCodec
from worldmodel.condition import start_picture
from worldmodel.condition.buttons import Button
from worldmodel.condition.camera import MOVES, TURNS, projections, ray_steps, step
from worldmodel.condition.tracks import PEN, TRACKS, TrackHead, TrackSpec, drawn, pen_of, track_map
from worldmodel.condition.wan_actions import ActionSpec, told_rows
from worldmodel.errors import SpecError
from worldmodel.families.checkpoint import Found
from worldmodel.families.family import About, Shapes, State, StateShapes, whole_number
from worldmodel.families.wan_transformer import WanSpec, WanTransformer
from worldmodel.schedule.plan import FlowTable, Plan, Schedule
from worldmodel.schedule.sampler import Stream

HEAD_DIM = 128  # of all public Wan checkpoints; their shapes do not tell
TEXT_ROWS = 512  # a prompt embedding always has, zero behind its end
IMAGE_TOKENS = 257  # of Wan's image encoder
PREVIEW_SIDE = 8  # pixels per latent cell where no codec was given
MOUSE_STEP = 0.1  # what an arrow key moves the view per picture (Matrix-Game 2)


@dataclass(frozen=True)
class WanWorldSpec:
    """Everything about an imported Wan world that is not a weight."""

    title: str
    transformer: WanSpec
    cache: Cache
    schedule: Schedule
    rows: int = 60  # latent size
    columns: int = 104
    picture_hz: float = 16.0
    prompt_rows: int = TEXT_ROWS
    image_tokens: int = IMAGE_TOKENS  # of a start picture, where the family takes one
    guidance: float | None = None
    keep_sink: bool = True  # when the prompt changes
    codec: wan_vae.WanVaeSpec | taehv.TaehvSpec | None = None  # None: a coarse preview of the latents
    table: FlowTable = field(default_factory=FlowTable)
    keyboard: tuple[str, ...] = ()  # names of the numbers of a keyboard row
    tracks: TrackSpec | None = None  # motion tracks drawn with the pointer

    def __post_init__(self) -> None:
        if self.picture_channels < 0 or 0 < self.picture_channels < self.transformer.out_channels:
            raise SpecError(
                f"{self.title}: {self.picture_channels} channels beside {self.transformer.out_channels} latent ones: "
                "a start picture takes at least as many again"
            )

    @property
    def picture_channels(self) -> int:
        """Channels of the start picture, right behind the latent ones: its mask and its latent."""
        tracks = self.tracks.out if self.tracks else 0
        return self.transformer.in_channels - self.transformer.out_channels - tracks


def read_transformer(shapes: Shapes, config: Mapping[str, Any]) -> WanSpec | None:
    """Sizes of a Wan transformer from its keys and shapes; None if it is something else.

    config: "num_heads" (or Diffusers' "num_attention_heads") for heads that are not 128 wide.
    """
    needed = ("patch_embedding.weight", "time_embedding.0.weight", "blocks.0.ffn.0.weight", "head.head.weight")
    if any(name not in shapes for name in needed) or len(shapes["patch_embedding.weight"]) != 5:
        return None
    dim, in_channels, _, *patch = shapes["patch_embedding.weight"]
    blocks = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    named = "num_heads" if "num_heads" in config else "num_attention_heads"
    heads = whole_number(config, named, dim // HEAD_DIM or 1)
    acting = tuple(sorted(block for block in blocks if any(f"blocks.{block}.action_model" in name for name in shapes)))
    return WanSpec(
        dim=dim,
        ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
        heads=heads,
        layers=max(blocks) + 1,
        freq_dim=shapes["time_embedding.0.weight"][1],
        in_channels=in_channels,
        out_channels=shapes["head.head.weight"][0] // (patch[0] * patch[1]),
        patch=(patch[0], patch[1]),
        text_dim=shapes.get("text_embedding.0.weight", (0, 0))[1],
        image_dim=shapes.get("img_emb.proj.0.weight", (0,))[0],
        qk_norm="blocks.0.self_attn.norm_q.weight" in shapes,
        cross_attn_norm="blocks.0.norm3.weight" in shapes,
        camera="blocks.0.self_attn.prope_o.weight" in shapes,
        ray_side=_ray_side(shapes, patch[0] * patch[1]),
        actions=_actions(shapes, acting, dim) if acting else None,
    )


def _ray_side(shapes: Shapes, cells: int) -> int:
    """Pixels of a ray map along a latent cell; cells: of a token."""
    numbers = shapes.get("patch_embedding_wancamctrl.weight", (0, 0))[1]
    side = math.isqrt(numbers // (6 * cells))
    if 6 * cells * side**2 != numbers:
        raise SpecError(f"patch_embedding_wancamctrl takes {numbers} numbers, which are no ray maps of 6 channels")
    return side


def _actions(shapes: Shapes, layers: tuple[int, ...], dim: int) -> ActionSpec:
    at = f"blocks.{layers[0]}.action_model."
    mouse = f"{at}t_qkv.weight" in shapes
    head = shapes[f"{at}key_attn_k_norm.weight"][0]
    width, told = shapes[f"{at}mouse_attn_q.weight"][0], shapes[f"{at}keyboard_attn_kv.weight"][1]
    embedding, keys = shapes[f"{at}keyboard_embed.0.weight"]
    rows = told // embedding
    return ActionSpec(
        layers=layers,
        heads=width // head,
        keys=keys,
        mouse=(shapes[f"{at}mouse_mlp.0.weight"][1] - dim) // rows if mouse else 0,
        embedding=embedding,
        mouse_dim=shapes[f"{at}t_qkv.weight"][1] if mouse else width,
        keyboard_dim=width,
        window=rows // ActionSpec.rows_per_frame,
    )


def read_codec(shapes: Shapes) -> wan_vae.WanVaeSpec | taehv.TaehvSpec | None:
    """The codec whose weights lie beside the transformer's, under `codec.`."""
    own = {name.removeprefix("codec."): shape for name, shape in shapes.items() if name.startswith("codec.")}
    return wan_vae.matches(own) or taehv.matches(own) if own else None


def text_to_video(shapes: Shapes, config: Mapping[str, Any]) -> WanSpec | None:
    """Sizes of a text-to-video transformer without anything added; None if it is something else."""
    spec = read_transformer(shapes, config)
    if spec is None or spec.camera or spec.actions or spec.image_dim or not spec.text_dim:
        return None
    return spec if spec.in_channels == spec.out_channels else None


def wrapped(config: Mapping[str, Any]) -> Found:
    """How the weights were wrapped: what tells families apart whose weights have the same names and shapes."""
    found = config.get("found")
    return found if isinstance(found, Found) else Found("")


def size_of(config: Mapping[str, Any], rows: int, columns: int) -> tuple[int, int]:
    """Latent size: what config says, or the family's own."""
    return whole_number(config, "latent_height", rows), whole_number(config, "latent_width", columns)


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = ("codec.", "track_head.")
    return {name if name.startswith(own) else f"transformer.{name}": tensor for name, tensor in weights.items()}


class WanWorld(nn.Module):
    """Plays a Wan transformer: `frame, state' = tick(state, action, prompt, noise)`.

    Beside what stream and codec remember, the state holds

        queue:       [batch, pictures of a block, height, width, 3] uint8, the pictures made last
        queue.left:  [batch] int64, how many of them are still to be shown
        pose:        [batch, 4, 4], camera-to-world minus identity (camera families)
        rows.NAME:   [batch, told rows, numbers], the last action rows (keyboard and mouse families)
        picture.channels: [batch, frames, channels, rows, columns], what the start picture puts beside the first latent
                     frames; the last holds for all later ones. Zero: no picture, the world begins with what it likes
        picture.tokens: [batch, tokens, width], the start picture as its image encoder tells it
        tracks.path: [batch, pictures of a block, tracks, 2], where tracks were when the last pictures were shown
        tracks.seen: bool [batch, pictures of a block, tracks], whether they were there
        tracks.held: int64 [batch], the track under the pen, counted from 1
    """

    def __init__(self, spec: WanWorldSpec) -> None:
        super().__init__()
        self.spec = spec
        self.transformer = WanTransformer(spec.transformer)
        self.codec: StreamingCodec = _codec(spec)
        if spec.tracks:
            self.track_head = TrackHead(spec.tracks.channels, spec.tracks.out, spec.tracks.growth)
        self.stream = Stream(
            self.transformer, spec.cache, spec.schedule, (spec.rows, spec.columns), guidance=spec.guidance,
            commit_level=spec.table.at(0),
        )  # fmt: skip

    @property
    def about(self) -> About:
        spec, side = self.spec, _side(self.spec)
        buttons = _buttons(spec)
        text = (spec.prompt_rows, spec.transformer.text_dim)
        noise = (self._draws() * spec.cache.chunk, spec.transformer.out_channels, spec.rows, spec.columns)
        return About(
            title=spec.title,
            tick_hz=spec.picture_hz * self.codec.growth / 4,
            height=spec.rows * side,
            width=spec.columns * side,
            buttons=buttons,
            action_dim=max((button.index + 1 for button in buttons), default=0),
            noise_shape=noise,
            prompt_shape=text if spec.transformer.text_dim else (1, 1),
        )

    def state_shapes(self) -> StateShapes:
        about, spec = self.about, self.spec
        with torch.device("meta"):
            state = self.stream.empty(1)
            state |= {
                f"codec.{name}": part for name, part in self.codec.empty_state(1, spec.rows, spec.columns).items()
            }
        heads = (spec.transformer.heads, spec.transformer.head_dim)
        dtype = self.transformer.head.modulation.dtype
        crosses = self._crosses
        shapes: StateShapes = {name: (tuple(part.shape), part.dtype) for name, part in state.items()}
        for branch in self.stream.branches:
            for name, rows in crosses.items():
                for kind in "kv":
                    shape = (1, spec.transformer.layers, rows, *heads)
                    shapes[f"{branch}{name}.{kind}"] = (shape, dtype)
        shapes["queue"] = ((1, self.pictures, about.height, about.width, 3), torch.uint8)
        shapes["queue.left"] = ((1,), torch.int64)
        if spec.transformer.camera:
            shapes["pose"] = ((1, 4, 4), torch.float32)
        actions = spec.transformer.actions
        for name, (rows, numbers) in actions.steers.items() if actions else ():
            shapes[f"rows.{name}"] = ((1, rows, numbers), dtype)
        if spec.transformer.image_dim:
            shapes["picture.tokens"] = ((1, spec.image_tokens, spec.transformer.image_dim), dtype)
        if spec.picture_channels:
            shape = (1, start_picture.FRAMES, spec.picture_channels, spec.rows, spec.columns)
            shapes["picture.channels"] = (shape, dtype)
        if spec.tracks:
            shapes["tracks.path"] = ((1, self.pictures, TRACKS, 2), torch.float32)
            shapes["tracks.seen"] = ((1, self.pictures, TRACKS), torch.bool)
            shapes["tracks.held"] = ((1,), torch.int64)
        return shapes

    @property
    def _crosses(self) -> dict[str, int]:
        """What cross-attention goes to, and its rows: text, with a picture's tokens beside it, or these alone."""
        transformer, text, image = self.spec.transformer, self.spec.prompt_rows, self.spec.image_tokens
        if not transformer.text_dim:
            return {"cross": image}
        return {"cross": text, "image": image} if transformer.image_dim else {"cross": text}

    def start_from(self, picture: Tensor, encoder: start_picture.ClipVision | None) -> State:
        """The picture's channels and tokens, see `Playable`."""
        spec, found = self.spec, {}
        if not spec.picture_channels and not spec.transformer.image_dim:
            raise SpecError(f"{spec.title} takes no start picture")
        if spec.picture_channels:
            if not isinstance(self.codec, (wan_vae.WanVae, taehv.Taehv)):
                raise SpecError(f"{spec.title}: a start picture is encoded by the world's codec: give --codec")
            mask = spec.picture_channels - spec.transformer.out_channels
            given = picture.to(next(self.codec.parameters()).dtype)
            found["picture.channels"] = start_picture.channels(self.codec, given, spec.rows, spec.columns, mask)
        if spec.transformer.image_dim:
            if encoder is None:
                raise SpecError(f"{spec.title} attends to its start picture: give --image-encoder, a CLIP folder")
            found["picture.tokens"] = encoder(picture)
        shapes = self.state_shapes()
        for name, tensor in found.items():
            if tuple(tensor.shape) != shapes[name][0]:
                raise SpecError(
                    f"{spec.title}: {name} must be {list(shapes[name][0])}, its encoder makes {list(tensor.shape)}"
                )
        return {name: tensor.to(shapes[name][1]) for name, tensor in found.items()}

    @property
    def pictures(self) -> int:
        """Pictures of a block."""
        return self.spec.cache.chunk * self.codec.growth

    def _plans(self) -> list[Plan]:
        ticks = range(self.spec.schedule.steady_from + 1)
        return [self.spec.schedule.plan(tick, reprimed) for tick in ticks for reprimed in (False, True)]

    def _draws(self) -> int:
        """Noise blocks that the most demanding tick takes."""
        return max(self.stream.noises(plan) for plan in self._plans())

    def forward(self, state: State, action: Tensor, prompt: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """Show the next picture, after making the next block if the last one has been shown.

        noise: [batch, draws · chunk, channels, rows, columns], of which a shorter tick takes the first. The prompt
        works through `recache`. Returns uint8 [batch, height, width, 3].
        """
        if self.spec.tracks:
            state = self._drawn(state, action)
        left = state["queue.left"]
        if bool((left == 0).any()):
            if not bool((left == 0).all()):
                raise SpecError("players of one batch must be at the same picture of their blocks: start them together")
            state = self._make(state, action, noise)
            left = state["queue.left"]
        shown = torch.arange(len(left), device=left.device), self.pictures - left
        return state["queue"][shown], {**state, "queue.left": left - 1}

    def recache(self, state: State, prompt: Tensor) -> State:
        """The state under another prompt [batch, rows, dim], which a family without text ignores."""
        text = prompt if self.spec.transformer.text_dim else None
        image = state.get("picture.tokens")
        if self.spec.guidance is not None:
            no_text, no_image = (None if part is None else torch.zeros_like(part) for part in (text, image))
            state = self.stream.prompted(state, no_text, no_image, "uncond.")
        return self.stream.recache(state, text, image, keep_sink=self.spec.keep_sink)

    def _make(self, state: State, action: Tensor, noise: Tensor) -> State:
        """The next block and its pictures."""
        latents, state = self.denoise(state, action, noise)
        memory = {name.removeprefix("codec."): part for name, part in state.items() if name.startswith("codec.")}
        pictures, memory = self.decode(latents, memory)
        return {**state, **{f"codec.{name}": part for name, part in memory.items()}, "queue": pictures}

    def denoise(self, state: State, action: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """The latents of the next block, and the state after it but for the codec's memory and the pictures."""
        plan = self.stream.plan(state)
        first = (state["phase"] == 0) & (state["reprimed"] == 0)
        steer, state = self._steer(state, action, plan)
        latents, state = self.stream.tick(
            state, noise[:, : self.stream.noises(plan) * self.spec.cache.chunk], steer, plan
        )
        # A stream's first picture comes with copies in front of it, which are not shown.
        left = torch.where(first, self.pictures - self.codec.growth + 1, self.pictures)
        return latents, {**state, "queue.left": left}

    def decode(self, latents: Tensor, memory: State) -> tuple[Tensor, State]:
        """A block's pictures, uint8 [batch, pictures, height, width, 3], and the codec's memory after them."""
        if isinstance(self.codec, nn.Module):  # a codec's file may be of another precision than the transformer's
            latents = latents.to(next(self.codec.parameters()).dtype)
        pictures, memory = self.codec.decode(latents, memory)
        return self.codec.to_bytes(pictures), memory

    def _steer(self, state: State, action: Tensor, plan: Plan) -> tuple[dict[str, Tensor], State]:
        """Per-frame conditions of the blocks in flight, the action held for all of them; and the state after."""
        spec, frames = self.spec.transformer, plan.lanes * self.spec.cache.chunk
        steer: dict[str, Tensor] = {}
        if spec.ray_side:
            steer["rays"] = ray_steps(_camera_keys(action), frames, state["cache.next"] == 0).to(action.dtype)
        if spec.camera:
            poses, pose = [], state["pose"].double() + torch.eye(4, dtype=torch.float64, device=action.device)
            keys = _camera_keys(action)
            for _ in range(frames):
                poses.append(pose)
                pose = torch.stack([step(one, held) for one, held in zip(pose, keys, strict=True)])
            views = torch.linalg.inv(torch.stack(poses, 1)).to(action.dtype)
            lens = torch.diag(torch.tensor((*spec.lens, 1.0), dtype=action.dtype, device=action.device))
            steer["camera"] = projections(views, lens.expand(*views.shape[:2], 3, 3))
            state = {**state, "pose": (pose - torch.eye(4, dtype=torch.float64, device=action.device)).float()}
        if self.spec.picture_channels:
            number = state["cache.next"][:, None] + torch.arange(frames, device=action.device)
            number = number.clamp(max=start_picture.FRAMES - 1)
            steer["channels"] = torch.stack(
                [kept[at] for kept, at in zip(state["picture.channels"], number, strict=True)]
            )
        if self.spec.tracks:
            tracks = self._tracks(state, self.spec.tracks, frames).to(action.dtype)
            steer["channels"] = torch.cat([steer["channels"], tracks], 2) if "channels" in steer else tracks
        if spec.actions:
            told, state = self._rows(state, action, spec.actions, frames)
            steer |= told
        return steer, state

    def _rows(self, state: State, action: Tensor, spec: ActionSpec, frames: int) -> tuple[dict[str, Tensor], State]:
        """The rows each latent frame is told of: those before this block, then the action held."""
        parts = {"keyboard": action[:, : spec.keys], "mouse": action[:, spec.keys : spec.keys + spec.mouse]}
        told, after = {}, {}
        for name in spec.steers:
            held = parts[name][:, None].expand(-1, frames * spec.rows_per_frame, -1)
            rows = torch.cat([state[f"rows.{name}"], held.to(state[f"rows.{name}"])], 1)
            told[name] = told_rows(rows, torch.arange(frames, device=rows.device), spec, first_row=-spec.rows)
            block = self.spec.cache.chunk * spec.rows_per_frame
            after[f"rows.{name}"] = rows[:, block : block + spec.rows]
        return told, {**state, **after}

    def _drawn(self, state: State, action: Tensor) -> State:
        """The tracks after another picture: the pen's way goes on, the oldest picture's is forgotten."""
        path, seen = state["tracks.path"], state["tracks.seen"]
        places, there, held = drawn(path[:, -1], seen[:, -1], state["tracks.held"], pen_of(action))
        path, seen = torch.cat([path[:, 1:], places[:, None]], 1), torch.cat([seen[:, 1:], there[:, None]], 1)
        return {**state, "tracks.path": path, "tracks.seen": seen, "tracks.held": held}

    def _tracks(self, state: State, spec: TrackSpec, frames: int) -> Tensor:
        """Channels of the blocks in flight: this block moves as the pen did while the last was shown, then rests."""
        wanted = torch.arange(frames * spec.growth, device=state["tracks.path"].device)
        at = (wanted * self.codec.growth // spec.growth).clamp(max=self.pictures - 1)
        points, seen = state["tracks.path"][:, at], state["tracks.seen"][:, at]
        maps = track_map(points, seen, spec.channels, self.spec.rows, self.spec.columns)
        return self.track_head(maps.to(next(self.track_head.parameters()).dtype))


def _buttons(spec: WanWorldSpec) -> tuple[Button, ...]:
    """What the player can press: camera moves, or keyboard and mouse."""
    if spec.tracks:
        return PEN
    if spec.transformer.camera or spec.transformer.ray_side:
        keys = {"u": "space", "dn": "left shift", "j": "left", "l": "right", "i": "up", "k": "down"}
        return tuple(Button(name, (keys.get(name, name),), at) for at, name in enumerate((*MOVES, *TURNS)))
    actions = spec.transformer.actions
    if actions is None:
        return ()
    buttons = [Button(name, (name,), at) for at, name in enumerate(spec.keyboard[: actions.keys])]
    looks = (
        ("look up", "up", 0, 1),
        ("look down", "down", 0, -1),
        ("look left", "left", 1, -1),
        ("look right", "right", 1, 1),
    )
    if actions.mouse:
        buttons += [
            Button(name.replace(" ", "_"), (key,), actions.keys + axis, sign * MOUSE_STEP)
            for name, key, axis, sign in looks
        ]
    return tuple(buttons)


def _camera_keys(action: Tensor) -> list[list[str]]:
    """What each player holds."""
    return [[key for key, held in zip((*MOVES, *TURNS), row, strict=True) if held > 0] for row in action.tolist()]


def _side(spec: WanWorldSpec) -> int:
    """Pixels per latent cell."""
    if isinstance(spec.codec, wan_vae.WanVaeSpec):
        return spec.codec.side
    if isinstance(spec.codec, taehv.TaehvSpec):
        return spec.codec.patch_size * 2 ** sum(spec.codec.decoder_space_upscale)
    return PREVIEW_SIDE


def _codec(spec: WanWorldSpec) -> StreamingCodec:
    if isinstance(spec.codec, wan_vae.WanVaeSpec):
        return cast(StreamingCodec, wan_vae.WanVae(spec.codec))
    if isinstance(spec.codec, taehv.TaehvSpec):
        return cast(StreamingCodec, taehv.Taehv(spec.codec))
    return LatentPreview()


class LatentPreview:
    """Shows three of the latent channels, one picture per latent frame: for looking into a world without its codec."""

    growth = 1

    def empty_state(self, batch: int, rows: int, columns: int) -> State:
        return {}

    def decode(self, latents: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        side = float(PREVIEW_SIDE)
        return nnf.interpolate(latents[:, :, [0, 1, 2]], scale_factor=(1.0, side, side)), {}

    def to_bytes(self, pictures: Tensor) -> Tensor:
        """Two standard deviations either way fill the range."""
        return ((pictures / 4 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)

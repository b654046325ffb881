"""The causal Wan 2.1 diffusion transformer: one pass over any frames, each at its own noise level.

Parameters bear the names of the public checkpoints. Who sees whom, and at which positions, is given with the pass
(cache/attention.py).

Sizes in comments: F query frames, T tokens of a frame (row by row), H heads, D numbers per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from worldmodel.cache.attention import (
    EVERY,
    Context,
    Fresh,
    Group,
    Turns,
    angles,
    attend,
    behind,
    only,
    rotate,
    select,
    standing,
    unit,
)
from worldmodel.cache.base import Reading, State, gather
from worldmodel.condition.camera import from_camera, project, ray_tokens, rays, to_camera
from worldmodel.condition.wan_actions import ActionModule, ActionSpec
from worldmodel.errors import SpecError

TURNS_KEPT = 8  # rotations last made; a cache that counts positions from its own start needs the same ones for ever


@dataclass(frozen=True)
class WanSpec:
    """Sizes and differences of architecture. All that a family's checkpoint does not say by itself."""

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    freq_dim: int = 256  # numbers in the sinusoid of a timestep
    in_channels: int = 16  # latent channels, and what is concatenated to them
    out_channels: int = 16
    patch: tuple[int, int] = (2, 2)  # latent rows and columns of a token
    text_dim: int = 4096  # 0: no text, cross-attention goes to image tokens alone
    image_dim: int = 0  # width of the image encoder's tokens, 0: none
    eps: float = 1e-6
    qk_norm: bool = True
    cross_attn_norm: bool = True
    camera: bool = False  # a second attention branch with projective positions (minWM)
    ray_side: int = 0  # pixels of a ray map along a latent cell; the map scales and shifts every token (LingBot-World)
    lens: tuple[float, float] = (0.5050505, 0.89786756)  # focal lengths in picture widths and heights
    actions: ActionSpec | None = None  # keyboard and mouse modules (Matrix-Game 2)
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if min(self.patch) < 1:
            raise SpecError(f"patch must be at least one latent row and column: got {self.patch}")
        if self.dim % self.heads or self.head_dim % 2:
            raise SpecError(f"dim must be heads × an even number: got {self.dim} and {self.heads} heads")
        if self.camera and self.head_dim % 4:
            raise SpecError(f"the camera branch needs heads of a multiple of 4: got head_dim={self.head_dim}")
        if not self.text_dim and not self.image_dim:
            raise SpecError("cross-attention needs text_dim or image_dim: got neither")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    def steers(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Per-frame conditions that a pass takes, and the shape of one frame's; size: latent rows and columns."""
        found: dict[str, tuple[int, ...]] = {"camera": (4, 4)} if self.camera else {}
        if self.ray_side:
            found["rays"] = (4, 4)
        if self.in_channels > self.out_channels:
            found["channels"] = (self.in_channels - self.out_channels, *size)
        return found | (self.actions.steers if self.actions else {})

    @property
    def stores(self) -> dict[str, tuple[int, int, int, int]]:
        """What a cache keeps: store name to layers, tokens per frame (0: all), heads, head_dim."""
        own = (self.layers, 0, self.heads, self.head_dim)
        found = {"self": own} | ({"camera": own} if self.camera else {})
        return found | (self.actions.stores if self.actions else {})


Modulation = tuple[Tensor, ...]  # each [batch or 1, F, 1, dim]


class Levels(NamedTuple):
    """What the timesteps of a pass's frames do to every layer; made by `WanTransformer.levels`."""

    blocks: tuple[Modulation, ...]  # per layer: shift, 1 + scale, gate of attention, and of the feed-forward
    head: Modulation  # shift, 1 + scale


@dataclass(frozen=True)
class Conditions:
    """What steers a pass besides noise and positions.

    cross:     state with "cross.k" and "cross.v" ([batch, layers, tokens, H, D]), and "image.k", "image.v" where both
    channels:  [batch, F, C, rows, columns], concatenated to the latents, or None
    camera:    [batch, F, 4, 4] projections of the frames, or None
    rays:      [batch, F, 4, 4] camera-to-world poses; inside the transformer what it makes of them, [batch, F, T, dim]
    mouse, keyboard: [batch, F, rows, numbers], the action rows each latent frame is told of, or None
    """

    cross: State
    channels: Tensor | None = None
    camera: Tensor | None = None
    rays: Tensor | None = None
    mouse: Tensor | None = None
    keyboard: Tensor | None = None


class WanTransformer(nn.Module):
    """Velocities of latent frames. Its parameters are named as in the public checkpoints.

    recompute: a pass with gradient remembers each layer's input alone and computes the layer again on its way back.
    """

    def __init__(self, spec: WanSpec) -> None:
        super().__init__()
        self.spec, self.recompute = spec, False
        dim = spec.dim
        self.patch_embedding = nn.Conv3d(spec.in_channels, dim, (1, *spec.patch), (1, *spec.patch))
        if spec.text_dim:
            self.text_embedding = nn.Sequential(nn.Linear(spec.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        if spec.image_dim:
            self.img_emb = ImageEmbedding(spec.image_dim, dim)
        if spec.ray_side:
            numbers = 6 * spec.ray_side**2 * spec.patch[0] * spec.patch[1]
            self.patch_embedding_wancamctrl = nn.Linear(numbers, dim)
            self.c2ws_hidden_states_layer1, self.c2ws_hidden_states_layer2 = (nn.Linear(dim, dim) for _ in range(2))
        self.time_embedding = nn.Sequential(nn.Linear(spec.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks: Sequence[Block] = nn.ModuleList(Block(spec, layer) for layer in range(spec.layers))  # type: ignore[assignment]
        self.head = Head(spec)
        self._places: dict[tuple[int, int], Tensor] = {}
        self._turns: dict[tuple[object, ...], Turns] = {}

    def forward(
        self,
        latents: Tensor,
        levels: Levels,
        groups: tuple[Group, ...],
        conditions: Conditions,
        keep: slice = EVERY,
        silent: int = 0,
    ) -> tuple[Tensor, State]:
        """Velocities, and the keys and values that frames would put into a cache.

        latents: [batch, F, channels, rows, columns]. keep: frames whose keys and values are wanted. silent: so many
        frames in front, whole groups, are there for their keys and values alone, so their last layer is left out.
        Returns [batch, F - silent, channels, rows, columns], and {"kv.NAME.k": [batch, layers, kept frames, T, H, D]}.
        """
        channels = [latents] if conditions.channels is None else [latents, conditions.channels]
        tokens = self.embed(torch.cat(channels, 2))
        if conditions.rays is not None:
            conditions = replace(conditions, rays=self.embed_rays(conditions.rays, latents.shape[-2:]).to(tokens))
        fresh, own = Fresh(keep), standing(groups)
        again = self.recompute and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            last = layer == len(self.blocks) - 1
            told = (levels.blocks[layer], groups, own, conditions, fresh, silent if last else 0)
            if again:
                tokens = checkpoint(block, tokens, *told, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, *told)
        if tokens.shape[1]:
            head = self.head(tokens, *(only(vector, slice(silent, int(vector.shape[1]))) for vector in levels.head))
            flow = self.unpatch(head, _sizes(latents)[-2:])
        else:
            flow = latents[:, :0, : self.spec.out_channels]
        return flow, fresh.stacked()

    def embed(self, latents: Tensor) -> Tensor:
        """[batch, F, channels, rows, columns] to tokens [batch, F, T, dim]."""
        _, frames, channels, rows, columns = _sizes(latents)
        down, right = self.spec.patch
        cells = latents.reshape(-1, frames, channels, rows // down, down, columns // right, right)
        tokens, numbers = rows * columns // (down * right), channels * down * right
        patches = cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, frames, tokens, numbers)
        # The convolution does not overlap: as a matrix product it is several times faster on CPUs.
        return nnf.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def embed_rays(self, poses: Tensor, size: torch.Size) -> Tensor:
        """[batch, F, 4, 4] to [batch, F, T, dim]; size: latent rows and columns."""
        side, like = self.spec.ray_side, self.patch_embedding_wancamctrl.weight
        maps = rays(poses.float(), self.spec.lens, size[0] * side, size[1] * side)
        seen = self.patch_embedding_wancamctrl(ray_tokens(maps, side, self.spec.patch).to(like.dtype))
        return seen + self.c2ws_hidden_states_layer2(nnf.silu(self.c2ws_hidden_states_layer1(seen)))

    def unpatch(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """[batch, F, T, patch numbers] to [batch, F, channels, rows, columns].

        A token's numbers run row, column, channel.
        """
        rows, columns = size[0] // self.spec.patch[0], size[1] // self.spec.patch[1]
        frames = int(values.shape[1])
        grid = values.reshape(-1, frames, rows, columns, *self.spec.patch, self.spec.out_channels)
        return grid.permute(0, 1, 6, 2, 4, 3, 5).reshape(-1, frames, self.spec.out_channels, *size)

    def embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps 0..1000 of any shape […] to [… , dim] and the six vectors of a block [… , 6, dim]."""
        half = self.spec.freq_dim // 2
        turn = torch.pow(10000, -torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
        angles = timesteps.double()[..., None] * turn
        sinusoid = torch.cat([angles.cos(), angles.sin()], -1).to(self.head.modulation.dtype)
        embedded = self.time_embedding(sinusoid)
        return embedded, self.time_projection(embedded).unflatten(-1, (6, self.spec.dim))

    def levels(self, timesteps: Tensor) -> Levels:
        """Everything that depends on the timesteps [batch or 1, F] alone, for all layers."""
        embedded, six = self.embed_time(timesteps)
        one = torch.zeros(6, 1, dtype=six.dtype, device=six.device)
        one[1], one[4] = 1.0, 1.0  # scales are stored as differences from one
        head = (self.head.modulation + one[:2] + embedded[..., None, :])[:, :, :, None].unbind(2)
        return Levels(tuple((six + block.modulation + one)[:, :, :, None].unbind(2) for block in self.blocks), head)

    def embed_text(self, text: Tensor) -> Tensor:
        """[batch, rows, text_dim], zero rows included, to [batch, rows, dim]."""
        return self.text_embedding(text)

    def cross(self, prompt: Tensor | None = None, image: Tensor | None = None) -> State:
        """Keys and values of cross-attention, which depend on the prompt and the start picture alone.

        prompt: [batch, rows, text_dim]. image: [batch, tokens, image_dim]. A family without text gives the image alone.
        """
        tokens = None if image is None else self.img_emb(image)
        main = tokens if prompt is None else self.embed_text(prompt)
        if main is None:
            raise SpecError("cross-attention needs a prompt or an image: got neither")
        found = {"cross": [block.cross_attn.remember(main) for block in self.blocks]}
        if prompt is not None and tokens is not None:
            found["image"] = [block.cross_attn.remember_image(tokens) for block in self.blocks]
        return {f"{name}.{kind}": torch.stack([kv[i] for kv in kvs], 1)
                for name, kvs in found.items() for i, kind in enumerate("kv")}  # fmt: skip

    def turns(self, positions: Tensor, size: tuple[int, int]) -> Turns:
        """Rotations of whole frames at temporal positions [batch, frames]; size: latent rows and columns."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined]  # a recording computes them, it must not hold one tick's
            return self._turned(positions, size)
        known = (tuple(positions.flatten().tolist()), positions.shape, size, positions.device)
        if known not in self._turns:
            if len(self._turns) >= TURNS_KEPT:
                del self._turns[next(iter(self._turns))]
            self._turns[known] = self._turned(positions, size)
        return self._turns[known]

    def _turned(self, positions: Tensor, size: tuple[int, int]) -> Turns:
        batch, frames = positions.shape[0], int(positions.shape[1])  # the batch as it is: graphs leave it open
        place = self._place(size, positions.device)  # complex [T, pairs]
        tokens, pairs = _sizes(place)
        turn = unit(angles(positions, self.spec.head_dim // 2 - pairs, self.spec.rope_theta)).unsqueeze(2)
        space = torch.cat([turn.expand(-1, -1, tokens, -1), place.expand(batch, frames, -1, -1)], -1).unsqueeze(3)
        action = turn.narrow(-1, 0, 0)
        if self.spec.actions:
            action = unit(self.spec.actions.angles(positions)).unsqueeze(2)
        return Turns(space, action.unsqueeze(3))

    def _place(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """The part of the rotations that depends on the place in the picture alone; made once per size."""
        if size not in self._places:
            rows, columns = size[0] // self.spec.patch[0], size[1] // self.spec.patch[1]
            side = self.spec.head_dim // 2 // 3
            down, right = (angles(torch.arange(n, device=device), side, self.spec.rope_theta) for n in (rows, columns))
            grid = [down[:, None].expand(-1, columns, -1), right.expand(rows, -1, -1)]
            self._places[size] = unit(torch.cat(grid, -1).flatten(0, 1))
        return self._places[size]

    def context(self, state: State, reading: Reading, size: tuple[int, int]) -> Context | None:
        """Read the cache: gather every store and rotate its keys. None where there is nothing to see yet."""
        columns = reading.valid.any(0)  # what nobody sees is not read at all
        if not columns.any():
            return None
        if not columns.all():
            reading = select(reading, columns)
        turns = self.turns(reading.positions, size)
        if reading.unrotated is not None:
            turns = Turns(torch.where(reading.unrotated[:, :, None, None, None], 1.0 + 0.0j, turns.space), turns.action)
        keys, values = {}, {}
        for name in self.spec.stores:
            key = gather(state[f"kv.{name}.k"], reading)
            if name == "self":
                key = rotate(key, turns.space[:, None])
            elif name in ("mouse", "keyboard"):
                key = rotate(key, turns.action[:, None])
            keys[name], values[name] = key, gather(state[f"kv.{name}.v"], reading)
        valid = None if reading.valid.all() else reading.valid
        return Context(keys, values, reading.slots.shape[1], valid)

    def empty_stores(self, batch: int, slots: int, tokens: int) -> State:
        """Zeros for everything that a cache of `slots` frames keeps."""
        like = self.head.modulation
        return {
            f"kv.{name}.{kind}": like.new_zeros(batch, layers, slots, own or tokens, heads, head_dim)
            for name, (layers, own, heads, head_dim) in self.spec.stores.items()
            for kind in "kv"
        }


class Block(nn.Module):
    """One layer: self-attention, cross-attention, actions, feed-forward."""

    def __init__(self, spec: WanSpec, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.modulation = nn.Parameter(torch.zeros(1, 6, spec.dim))
        self.self_attn = SelfAttention(spec)
        self.norm3 = nn.LayerNorm(spec.dim, spec.eps) if spec.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(spec)
        self.ffn = nn.Sequential(nn.Linear(spec.dim, spec.ffn_dim), nn.GELU("tanh"), nn.Linear(spec.ffn_dim, spec.dim))
        if spec.ray_side:
            self.cam_injector_layer1, self.cam_injector_layer2 = (nn.Linear(spec.dim, spec.dim) for _ in range(2))
            self.cam_scale_layer, self.cam_shift_layer = (nn.Linear(spec.dim, spec.dim) for _ in range(2))
        self.norm = nn.LayerNorm(spec.dim, spec.eps, elementwise_affine=False)
        self.acts = spec.actions is not None and layer in spec.actions.layers
        if spec.actions and self.acts:
            self.action_model = ActionModule(spec.actions, spec.dim)

    def forward(
        self,
        tokens: Tensor,
        level: Modulation,
        groups: tuple[Group, ...],
        own: Turns,
        conditions: Conditions,
        fresh: Fresh,
        silent: int,
    ) -> Tensor:
        """tokens: [batch, F, T, dim]. Returns those behind the silent frames."""
        shift, scale, gate, shift2, scale2, gate2 = level
        unheard = 0 if self.acts else silent  # the action module's keys come from the tokens that attention makes
        asking = torch.addcmul(shift, self.norm(tokens), scale)
        told = self.self_attn.forward(asking, self.layer, groups, own, conditions.camera, fresh, unheard)
        if unheard:
            tokens, gate = tokens[:, unheard:], gate[:, unheard:]
        if tokens.shape[1]:
            tokens = torch.addcmul(tokens, told, gate)
            if conditions.rays is not None:
                tokens = self.look(tokens, conditions.rays[:, unheard:])
            tokens = tokens + self.cross_attn.forward(self.norm3(tokens), self.layer, conditions.cross)
        if self.acts:
            tokens = self.action_model(tokens, self.layer, groups, own, conditions.mouse, conditions.keyboard, fresh)
            tokens = tokens[:, silent:]
        if not tokens.shape[1]:
            return tokens
        if silent:
            shift2, scale2, gate2 = (part[:, silent:] for part in (shift2, scale2, gate2))
        return torch.addcmul(tokens, self.ffn(torch.addcmul(shift2, self.norm(tokens), scale2)), gate2)

    def look(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens scaled and shifted by what their rays say; both [batch, F, T, dim]."""
        told = seen + self.cam_injector_layer2(nnf.silu(self.cam_injector_layer1(seen)))
        return torch.addcmul(tokens + self.cam_shift_layer(told), tokens, self.cam_scale_layer(told))


class SelfAttention(nn.Module):
    """Attention among frames, over the pass and the cache, with a camera branch where the family has one."""

    def __init__(self, spec: WanSpec) -> None:
        super().__init__()
        self.heads, self.eps = spec.heads, spec.eps
        self.q, self.k, self.v, self.o = (nn.Linear(spec.dim, spec.dim) for _ in range(4))
        self.norm_q, self.norm_k = (rms_norm(spec) for _ in range(2))
        if spec.camera:
            self.prope_o = nn.Linear(spec.dim, spec.dim)

    def forward(
        self,
        tokens: Tensor,
        layer: int,
        groups: tuple[Group, ...],
        own: Turns,
        camera: Tensor | None,
        fresh: Fresh,
        silent: int,
    ) -> Tensor:
        """tokens: [batch, F, T, dim]. Returns what the frames behind the silent ones gather."""
        made = self.project(tokens, own.space, silent)
        query, key, value = made.query, made.key, made.value
        fresh.keep("self", key, value)
        if camera is not None:
            keys, values = to_camera(key, camera), to_camera(value, camera)
            fresh.keep("camera", keys, values)
        if silent:
            groups = tuple(group for group in groups if group.frames.start >= silent)
        if not groups:
            return tokens[:, silent:]
        told = []
        for group in groups:
            turned = [seen.turned(key, made.rotated) for seen in group.sees]
            seen_keys, seen_values = group.keys("self", layer, turned), group.values("self", layer, value)
            asked = only(made.asked, behind(group, silent))
            told.append(attend(asked, seen_keys, seen_values, group.mask(key.shape[2])))
        out = self.o(torch.cat(told, 1) if len(told) > 1 else told[0])
        if camera is None:
            return out
        query = project(query, camera[:, silent:])
        through = []
        for group in groups:
            turned = [keys[:, seen.frames] for seen in group.sees]
            seen_keys, seen_values = group.keys("camera", layer, turned), group.values("camera", layer, values)
            through.append(attend(query[:, behind(group, silent)], seen_keys, seen_values, group.mask(key.shape[2])))
        seen_through = from_camera(torch.cat(through, 1).unflatten(-1, (self.heads, -1)), camera[:, silent:])
        return out + self.prope_o(seen_through.flatten(-2))

    def project(self, tokens: Tensor, turns: Tensor, silent: int) -> Projected:
        """tokens: [batch, F, T, dim]; turns: of all of them, complex [batch, F, T, 1, D/2]."""
        key = self.norm_k(self.k(tokens)).unflatten(-1, (self.heads, -1))
        value = self.v(tokens).unflatten(-1, (self.heads, -1))
        asking = slice(silent, int(tokens.shape[1]))
        query = self.norm_q(self.q(only(tokens, asking))).unflatten(-1, (self.heads, -1))
        return Projected(query, key, value, rotate(query, only(turns, asking)), rotate(key, turns))


class Projected(NamedTuple):
    """What attention is made of, [batch, F, T, H, D] each; of the silent frames in front there are no queries."""

    query: Tensor
    key: Tensor
    value: Tensor
    asked: Tensor  # queries rotated to where they stand
    rotated: Tensor  # keys, the same


class CrossAttention(nn.Module):
    """Attention to the prompt, and to the start picture's tokens where the family has both."""

    def __init__(self, spec: WanSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.q, self.k, self.v, self.o = (nn.Linear(spec.dim, spec.dim) for _ in range(4))
        self.norm_q, self.norm_k = (rms_norm(spec) for _ in range(2))
        if spec.text_dim and spec.image_dim:
            self.k_img, self.v_img = (nn.Linear(spec.dim, spec.dim) for _ in range(2))
            self.norm_k_img = rms_norm(spec)

    def remember(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context [batch, rows, dim]: [batch, rows, H, D] each."""
        key, value = self.norm_k(self.k(context)), self.v(context)
        return key.unflatten(-1, (self.heads, -1)), value.unflatten(-1, (self.heads, -1))

    def remember_image(self, context: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.norm_k_img(self.k_img(context)), self.v_img(context)
        return key.unflatten(-1, (self.heads, -1)), value.unflatten(-1, (self.heads, -1))

    def forward(self, tokens: Tensor, layer: int, cross: State) -> Tensor:
        query = self.norm_q(self.q(tokens)).unflatten(-1, (self.heads, -1))
        told = attend(query, *(cross[f"cross.{kind}"].select(1, layer).unsqueeze(1) for kind in "kv"))
        if "image.k" in cross:
            told = told + attend(query, *(cross[f"image.{kind}"].select(1, layer).unsqueeze(1) for kind in "kv"))
        return cast(Tensor, self.o(told))


class ImageEmbedding(nn.Module):
    """Image encoder tokens to the transformer's width."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(image_dim),
            nn.Linear(image_dim, image_dim),
            nn.GELU(),
            nn.Linear(image_dim, dim),
            nn.LayerNorm(dim),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)


class Head(nn.Module):
    """Tokens to velocities, modulated by the time embedding itself (not by the six-fold projection)."""

    def __init__(self, spec: WanSpec) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.zeros(1, 2, spec.dim))
        self.head = nn.Linear(spec.dim, spec.patch[0] * spec.patch[1] * spec.out_channels)
        self.norm = nn.LayerNorm(spec.dim, spec.eps, elementwise_affine=False)

    def forward(self, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return self.head(torch.addcmul(shift, self.norm(tokens), scale))


def _sizes(x: Tensor) -> tuple[int, ...]:
    """Plain numbers: of a shape itself, a recording would make operations of its own."""
    return tuple(map(int, x.shape))


def rms_norm(spec: WanSpec) -> nn.Module:
    """Over all heads together."""
    return RmsNorm(spec.dim, spec.eps) if spec.qk_norm else nn.Identity()


class RmsNorm(nn.Module):
    """Division by the root of the mean square, in float32.

    The weight after it. Fewer passes than torch's own on CPUs.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        whole = x.float()
        length = torch.linalg.vector_norm(whole, dim=-1, keepdim=True)
        scale = torch.rsqrt(length.square().mul_(1 / self.dim).add_(self.eps))
        return (whole * scale).type_as(x) * self.weight

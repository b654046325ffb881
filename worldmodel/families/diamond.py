"""DIAMOND (arXiv:2405.12399; github.com/eloialonso/diamond, MIT): a diffusion world model of Atari games in pixels.

A U-Net denoises the next picture beside the last few ones; the last few actions steer it through its group norms.
Its whole state is those pictures and actions. Parameter names are those of the public agents' `denoiser.` part.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.condition.buttons import Button
from worldmodel.condition.start_picture import ClipVision, as_bytes
from worldmodel.errors import SpecError
from worldmodel.families.family import About, Shapes, State, StateShapes

HEAD_DIM = 8  # of the attention blocks
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class DiamondSpec:
    """Sizes and noise levels. The defaults are the published Atari agents'."""

    num_actions: int
    img_channels: int = 3
    num_steps_conditioning: int = 4  # past pictures and actions that a new picture sees
    cond_channels: int = 256
    depths: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks per level
    channels: tuple[int, ...] = (64, 64, 64, 64)
    attn_depths: tuple[bool, ...] = (False, False, False, False)  # which levels attend
    sigma_data: float = 0.5
    sigma_offset_noise: float = 0.3
    num_steps: int = 3  # denoising steps
    sigma_min: float = 0.002
    sigma_max: float = 5.0
    rho: float = 7.0
    order: int = 1  # 1 Euler, 2 Heun
    height: int = 64  # pixels
    width: int = 64

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.channels) == len(self.attn_depths):
            raise SpecError("diamond.depths, .channels and .attn_depths need one entry per level each")
        if self.cond_channels % self.num_steps_conditioning:
            raise SpecError(
                f"diamond.cond_channels must be a multiple of num_steps_conditioning={self.num_steps_conditioning}: "
                f"got {self.cond_channels}"
            )
        if self.order not in (1, 2):
            raise SpecError(f"diamond.order must be 1 (Euler) or 2 (Heun): got {self.order}")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the steps and the final 0 (EDM, arXiv:2206.00364, eq. 5)."""
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        steps = range(self.num_steps)
        return (*((top + i / max(self.num_steps - 1, 1) * (bottom - top)) ** self.rho for i in steps), 0.0)


def matches(shapes: Shapes, config: Mapping[str, Any]) -> DiamondSpec | None:
    """The spec of an Atari agent's file, from its keys and shapes; None if it is something else."""
    at = {key.removeprefix("denoiser."): shape for key, shape in shapes.items()}
    needed = ("inner_model.act_emb.0.weight", "inner_model.conv_in.weight", "inner_model.conv_out.weight",
              "inner_model.cond_proj.0.weight", "inner_model.unet.d_blocks.0.resblocks.0.conv1.weight")  # fmt: skip
    if any(key not in at for key in needed):
        return None
    image, cond = at["inner_model.conv_out.weight"][0], at["inner_model.cond_proj.0.weight"][0]
    actions, per_action = at["inner_model.act_emb.0.weight"]
    blocks = [match for key in at if (match := re.fullmatch(_DOWN_BLOCK, key))]
    levels = range(1 + max(int(block[1]) for block in blocks))
    return DiamondSpec(
        num_actions=actions,
        img_channels=image,
        num_steps_conditioning=cond // per_action,
        cond_channels=cond,
        depths=tuple(sum(int(block[1]) == level for block in blocks) for level in levels),
        channels=tuple(at[f"inner_model.unet.d_blocks.{level}.resblocks.0.conv1.weight"][0] for level in levels),
        attn_depths=tuple(
            f"inner_model.unet.d_blocks.{level}.resblocks.0.attn.qkv_proj.weight" in at for level in levels
        ),
    )


_DOWN_BLOCK = r"inner_model\.unet\.d_blocks\.(\d+)\.resblocks\.(\d+)\.conv1\.weight"


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's part of an agent's file, whose reward model and policy are not needed to play."""
    if any(name.startswith("denoiser.") for name in weights):
        return {name: tensor for name, tensor in weights.items() if name.startswith("denoiser.")}
    return {f"denoiser.{name}": tensor for name, tensor in weights.items()}


def build(spec: DiamondSpec) -> DiamondWorld:
    return DiamondWorld(spec)


class DiamondWorld(nn.Module):
    """Plays the denoiser: `frame, state' = tick(state, action, prompt, noise)`."""

    def __init__(self, spec: DiamondSpec) -> None:
        super().__init__()
        self.spec = spec
        self.denoiser = Denoiser(spec)

    @property
    def about(self) -> About:
        spec = self.spec
        return About(
            title="DIAMOND",
            tick_hz=15.0,  # Atari's 60 Hz, every fourth picture
            height=spec.height,
            width=spec.width,
            buttons=_buttons(spec.num_actions),
            action_dim=spec.num_actions,
            noise_shape=(1, spec.img_channels, spec.height, spec.width),
            prompt_shape=(1, 1),
        )

    def state_shapes(self) -> StateShapes:
        """`pictures` [1, past, height, width, channels], the latest ones shown, oldest first, and all `actions` but the
        next [1, past − 1]. All zero: black, and nothing pressed."""
        spec = self.spec
        past = spec.num_steps_conditioning
        return {
            "pictures": ((1, past, spec.height, spec.width, spec.img_channels), torch.uint8),
            "actions": ((1, past - 1), torch.int64),
        }

    def start_from(self, picture: Tensor, encoder: ClipVision | None) -> State:
        """The state after the picture, see `Playable`."""
        return self.start(as_bytes(picture)[:, None])

    def start(self, pictures: Tensor) -> State:
        """The state after pictures uint8 [batch, frames, height, width, channels]; the first fills what is missing."""
        batch, past = pictures.shape[0], self.spec.num_steps_conditioning
        seen = pictures[:, -past:]
        filler = seen[:, :1].expand(-1, past - seen.shape[1], -1, -1, -1)
        actions = torch.zeros(batch, past - 1, dtype=torch.int64, device=pictures.device)
        return {"pictures": torch.cat([filler, seen], dim=1), "actions": actions}

    def forward(self, state: State, action: Tensor, prompt: Tensor, noise: Tensor) -> tuple[Tensor, State]:
        """Make the next picture.

        action: [batch, num_actions], the pressed one largest; nothing pressed is action 0, no-op. prompt: not used.
        noise: [batch, 1, channels, height, width], standard normal. Returns uint8 [batch, height, width, channels].
        """
        actions = torch.cat([state["actions"], action.argmax(dim=1, keepdim=True)], dim=1)
        picture = self.denoiser.sample(from_bytes(state["pictures"], noise.dtype), actions, noise[:, 0])
        frame = to_bytes(picture)
        pictures = torch.cat([state["pictures"][:, 1:], frame.unsqueeze(1)], dim=1)
        return frame, {**state, "pictures": pictures, "actions": actions[:, 1:]}

    def recache(self, state: State, prompt: Tensor) -> State:
        """There is no prompt to renew anything for."""
        return state


def from_bytes(pictures: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[..., channels, height, width] in [−1, 1] of uint8 [..., height, width, channels]."""
    return pictures.movedim(-1, -3).to(dtype) / 255 * 2 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """uint8 [..., height, width, channels]. What lies on the 256 levels comes back exactly."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


# The full set of the Arcade Learning Environment. Games with fewer actions use some of them, a file does not say which.
ATARI = (
    "noop", "fire", "up", "right", "left", "down", "up_right", "up_left", "down_right", "down_left", "up_fire",
    "right_fire", "left_fire", "down_fire", "up_right_fire", "up_left_fire", "down_right_fire", "down_left_fire",
)  # fmt: skip


def _buttons(num_actions: int) -> tuple[Button, ...]:
    """A button per action but the first, which is no button pressed."""
    names = ATARI if num_actions == len(ATARI) else tuple(f"action_{action}" for action in range(num_actions))
    keys = {"fire": ("space",), "up": ("up",), "right": ("right",), "left": ("left",), "down": ("down",)}
    return tuple(
        Button(name, keys.get(name, (str(action),) if action < 10 else ()), action)
        for action, name in enumerate(names)
        if action
    )


class Denoiser(nn.Module):
    """EDM preconditioning around the U-Net, and the sampler. Everything here is in [−1, 1]."""

    def __init__(self, spec: DiamondSpec) -> None:
        super().__init__()
        self.spec = spec
        self.inner_model = InnerModel(spec)

    def sample(self, pictures: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """The next picture [batch, channels, height, width] from noise of unit variance.

        pictures: [batch, past, channels, height, width]. actions: int64 [batch, past], the last one now taken.
        """
        return [step.after for step in self.steps(pictures, actions, noise)][-1]

    def steps(self, pictures: Tensor, actions: Tensor, noise: Tensor) -> Iterator[Step]:
        """The denoising steps of one picture, from the top sigma down."""
        x = noise
        for sigma, next_sigma in pairwise(self.spec.sigmas):
            output, clean = self.denoise(x, sigma, pictures, actions)
            denoised = to_levels(clean)
            slope = (x - denoised) / sigma
            after = x + slope * (next_sigma - sigma)
            if self.spec.order == 2 and next_sigma > 0:
                there = to_levels(self.denoise(after, next_sigma, pictures, actions)[1])
                after = x + (slope + (after - there) / next_sigma) / 2 * (next_sigma - sigma)
            yield Step(x, output, clean, denoised, after)
            x = after

    def denoise(self, x: Tensor, sigma: float, pictures: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The raw network output for x at noise level sigma, and the clean picture that it stands for."""
        level = preconditioning(self.spec, sigma)
        c_noise = x.new_full(x.shape[:1], math.log(level.total) / 4)
        output = self.inner_model(x * level.c_in, c_noise, pictures / self.spec.sigma_data, actions)
        return output, level.c_skip * x + level.c_out * output


class Preconditioning(NamedTuple, Generic[Number]):
    """Factors around the network at a noise level. total: of both noises together; c_noise is log(total) / 4."""

    total: Number
    c_in: Number
    c_skip: Number
    c_out: Number


def preconditioning(spec: DiamondSpec, sigma: Number) -> Preconditioning[Number]:
    """EDM's (arXiv:2206.00364, table 1): what goes into the network and what it is to give both have unit variance."""
    total = (sigma**2 + spec.sigma_offset_noise**2) ** 0.5
    c_in = (total**2 + spec.sigma_data**2) ** -0.5
    return Preconditioning(total, c_in, (spec.sigma_data * c_in) ** 2, total * spec.sigma_data * c_in)


class Step(NamedTuple):
    """One denoising step; every tensor [batch, channels, height, width]."""

    x: Tensor  # what the step started from
    output: Tensor  # of the network
    clean: Tensor  # the picture the output stands for
    denoised: Tensor  # the same on 256 levels
    after: Tensor  # what the next step starts from


def to_levels(picture: Tensor) -> Tensor:
    """Clamp to [−1, 1] and round down to one of 256 levels."""
    return ((picture.clamp(-1, 1) + 1) / 2 * 255).floor() / 255 * 2 - 1


class InnerModel(nn.Module):
    """The network: past pictures and the noisy one as channels, noise level and past actions as condition."""

    def __init__(self, spec: DiamondSpec) -> None:
        super().__init__()
        cond, image, width = spec.cond_channels, spec.img_channels, spec.channels[0]
        self.noise_emb = NoiseLevel(cond)
        self.act_emb = nn.Sequential(nn.Embedding(spec.num_actions, cond // spec.num_steps_conditioning), nn.Flatten())
        self.cond_proj = nn.Sequential(nn.Linear(cond, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.conv_in = _conv(image * (spec.num_steps_conditioning + 1), width)
        self.unet = UNet(spec)
        self.norm_out = GroupNorm(width)
        self.conv_out = _conv(width, image)

    def forward(self, noisy: Tensor, c_noise: Tensor, pictures: Tensor, actions: Tensor) -> Tensor:
        cond = self.cond_proj(self.noise_emb(c_noise) + self.act_emb(actions))
        x = self.conv_in(torch.cat([pictures.flatten(1, 2), noisy], dim=1))
        return self.conv_out(F.silu(self.norm_out(self.unet(x, cond))))


class NoiseLevel(nn.Module):
    """Random Fourier features of the noise level; the frequencies are part of a checkpoint."""

    weight: Tensor

    def __init__(self, cond: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1, cond // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        angle = 2 * math.pi * c_noise.unsqueeze(1) * self.weight
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class UNet(nn.Module):
    """Down, middle, up; every residual block on the way up takes one skip from the way down."""

    def __init__(self, spec: DiamondSpec) -> None:
        super().__init__()
        widths, cond = spec.channels, spec.cond_channels
        down, up = [], []
        for level, width in enumerate(widths):
            above, attend, depth = widths[max(level - 1, 0)], spec.attn_depths[level], spec.depths[level]
            ins = [above] + [width] * (depth - 1)
            down.append(Blocks([(i, width) for i in ins], cond, attend))
            # Upwards there is one block more: its skip is what the level's first block was given.
            up.append(Blocks([(2 * width, width)] * depth + [(above + width, above)], cond, attend))
        self.d_blocks = nn.ModuleList(down)
        self.mid_blocks = Blocks([(widths[-1], widths[-1])] * 2, cond, True)
        self.u_blocks = nn.ModuleList(reversed(up))
        self.downsamples = nn.ModuleList([nn.Identity(), *(Downsample(width) for width in widths[:-1])])
        self.upsamples = nn.ModuleList([nn.Identity(), *(Upsample(width) for width in reversed(widths[:-1]))])

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        unit = 2 ** (len(self.d_blocks) - 1)
        x = F.pad(x, (0, -width % unit, 0, -height % unit))
        skips: list[list[Tensor]] = []
        for down, blocks in zip(self.downsamples, self.d_blocks, strict=True):
            x = down(x)
            outputs = blocks(x, cond)
            skips.append([*reversed(outputs), x])
            x = outputs[-1]
        x = self.mid_blocks(x, cond)[-1]
        for up, blocks in zip(self.upsamples, self.u_blocks, strict=True):
            x = blocks(up(x), cond, skips.pop())[-1]
        return x[..., :height, :width]


class Blocks(nn.Module):
    """The residual blocks of one level."""

    def __init__(self, sizes: list[tuple[int, int]], cond: int, attend: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResBlock(dim_in, dim_out, cond, attend) for dim_in, dim_out in sizes)

    def forward(self, x: Tensor, cond: Tensor, skips: Sequence[Tensor] = ()) -> list[Tensor]:
        """The output of every block. Each is given the one before it, and beside it one of `skips` if there are any."""
        outputs: list[Tensor] = []
        for n, block in enumerate(self.resblocks):
            x = block(torch.cat([x, skips[n]], dim=1) if skips else x, cond)
            outputs.append(x)
        return outputs


class ResBlock(nn.Module):
    """Two convolutions under adaptive norms beside a shortcut, then attention where the level has it."""

    def __init__(self, dim_in: int, dim_out: int, cond: int, attend: bool) -> None:
        super().__init__()
        self.proj = nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1)
        self.norm1 = AdaptiveNorm(dim_in, cond)
        self.conv1 = _conv(dim_in, dim_out)
        self.norm2 = AdaptiveNorm(dim_out, cond)
        self.conv2 = _conv(dim_out, dim_out)
        self.attn = Attention(dim_out) if attend else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x, cond)))
        hidden = self.conv2(F.silu(self.norm2(hidden, cond)))
        return self.attn(hidden + self.proj(x))


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift come from the condition."""

    def __init__(self, dim: int, cond: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cond, 2 * dim)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.linear(cond)[..., None, None].chunk(2, dim=1)
        return F.group_norm(x, _groups(x.shape[1])) * (1 + scale) + shift


class GroupNorm(nn.Module):
    """Group norm with weights, under the checkpoint's name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(dim), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Attention(nn.Module):
    """Self-attention over all cells. What it finds is added to the *normalised* input, as in the public code."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = max(1, dim // HEAD_DIM)
        self.norm = GroupNorm(dim)
        self.qkv_proj = nn.Conv2d(dim, 3 * dim, 1)
        self.out_proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        qkv = self.qkv_proj(x).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2)
        q, k, v = qkv.unbind(1)  # [batch, heads, cells, head_dim]
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.out_proj(found.transpose(-1, -2).reshape(x.shape))


class Downsample(nn.Module):
    """Half the side."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the side."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = _conv(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


def _conv(dim_in: int, dim_out: int) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1)


def _groups(dim: int) -> int:
    return max(1, dim // 32)

"""The native generator: a frame-causal diffusion transformer that is told noise level, actions and prompt per frame.

It predicts the clean latent x0 of every frame it is given. What a frame may attend to is the caller's business: `Block`
takes attention apart into `project` (queries, keys, values of fresh frames) and `finish`, so that training
(clip.py) and play (tick.py) share all weights and arithmetic and differ only in where keys come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.spec import DragSpec, GeneratorSpec, WorldSpec
from worldmodel.transformer.rope import space_angles, time_angles, time_dim, turn

NOISE_FREQUENCIES = 64
NORM_EPSILON = 1e-6
FRESH = 16  # ticks after a prompt switch in which the picture turns towards the prompt
HEARD = 0.25  # how much of a prompt a new generator hears after that: what is shown says more than words
ASTRAY = 0.5  # size of the numbers, drawn once and for all, that tell of a future that is not to be
SLOWLY = 0.97  # how much of a slow number is left after a tick: half of it after 23
RECENT = 2  # frames before it that a frame is given as channels: position and speed at every place
STAYS = 7.0  # how much surer a new generator is that what a cell shows was there before than elsewhere in reach


class Block(nn.Module):
    """One transformer block with adaLN (shared projection, own table; PixArt, arXiv:2310.00426) and q/k RMSNorm."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        head_dim = dim // heads
        self.modulation = nn.Parameter(torch.zeros(6, dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm_q = nn.RMSNorm(head_dim, eps=NORM_EPSILON)
        self.norm_k = nn.RMSNorm(head_dim, eps=NORM_EPSILON)
        self.out = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, mlp_ratio * dim)
        self.down = nn.Linear(mlp_ratio * dim, dim)

    def modulations(self, shared: Tensor) -> tuple[Tensor, ...]:
        """Six vectors [batch, frames, 1, dim]: shift, scale, gate of attention, then of the MLP."""
        return tuple((shared + self.modulation).unsqueeze(-2).unbind(2))

    def project(self, x: Tensor, shared: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (turned by row and column only) and values, each [batch, frames, tokens, heads, head_dim].

        x: [batch, frames, tokens, dim]. shared: [batch, frames, 6, dim]. cos, sin: [tokens, 1, space_dim / 2].
        """
        batch, frames, tokens, dim = x.shape
        shift, scale = self.modulations(shared)[:2]
        hidden = F.layer_norm(x, (dim,)) * (1 + scale) + shift
        qkv = self.qkv(hidden).view(batch, frames, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.unbind(3)
        q, k = self.norm_q(q.float()), self.norm_k(k.float())
        return turn_space(q, cos, sin).to(v.dtype), turn_space(k, cos, sin).to(v.dtype), v

    def finish(self, x: Tensor, attended: Tensor, shared: Tensor) -> Tensor:
        """Add what attention found, then the MLP. attended: [batch, frames, tokens, dim]."""
        _, _, gate, shift, scale, mlp_gate = self.modulations(shared)
        x = x + gate * self.out(attended)
        hidden = F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift
        return x + mlp_gate * self.down(F.gelu(self.up(hidden), approximate="tanh"))


class Generator(nn.Module):
    """Latents in, clean latents out. All shapes in stored order; frames are counted along axis 1."""

    space_cos: Tensor
    space_sin: Tensor
    astray: Tensor

    def __init__(self, spec: WorldSpec) -> None:
        super().__init__()
        sizes = spec.generator
        channels, rows, columns = spec.latent_shape
        self.patch, self.grid = sizes.patch, (rows // sizes.patch, columns // sizes.patch)
        token_in = channels * sizes.patch**2
        self.embed = nn.Linear((1 + RECENT) * token_in, sizes.dim)
        self.place = nn.Parameter(torch.randn(spec.tokens, sizes.dim) * 0.02)
        self.noise_level = _mlp(2 * NOISE_FREQUENCIES, sizes.dim)
        self.actions = _mlp(sizes.action_history * spec.controls, sizes.dim)
        self.prompt = _mlp(spec.prompt_tokens * spec.prompt_dim, sizes.dim)
        self.fresh = nn.Parameter(torch.zeros(sizes.dim))
        self.heard = nn.Parameter(torch.full((sizes.dim,), HEARD))
        self.words = spec.prompt_tokens * spec.prompt_dim if sizes.prompt_skip else 0
        told = sizes.dim + self.words
        self.adaln = nn.Linear(told, 6 * sizes.dim)
        self.blocks = nn.ModuleList(Block(sizes.dim, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth))
        self.head_modulation = nn.Linear(told, 2 * sizes.dim)
        self.carry = nn.Linear(told, token_in)
        self.head = nn.Linear(sizes.dim, token_in)
        self.keep = nn.Linear(sizes.dim, 2 * token_in)
        self.moved = Moved(sizes, self.grid) if sizes.moves else None
        self.conv_head = ConvHead(sizes, channels, self.grid) if sizes.conv_head else None
        self.led = nn.Linear(DragSpec.NUMBERS * sizes.patch**2, sizes.dim, bias=False) if spec.tracks else None
        angles = space_angles(*self.grid, sizes.head_dim).unsqueeze(1)
        self.register_buffer("space_cos", angles.cos(), persistent=False)
        self.register_buffer("space_sin", angles.sin(), persistent=False)
        self.register_buffer(
            "astray", ASTRAY * torch.randn(sizes.dim, generator=torch.Generator().manual_seed(0)), persistent=False
        )
        for quiet in (self.adaln, self.head_modulation, self.head, self.keep, self.carry):
            nn.init.zeros_(quiet.weight)
            nn.init.zeros_(quiet.bias)
        nn.init.ones_(self.carry.bias)
        if self.led is not None:
            nn.init.zeros_(self.led.weight)

    @property
    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def condition(
        self, sigma: Tensor, actions: Tensor, prompt: Tensor, fresh: Tensor, astray: Tensor | None = None
    ) -> Tensor:
        """One vector per frame, [batch, frames, dim and, if they skip, the prompt's numbers].

        sigma: [batch, frames]. actions: [batch, frames, history, action_dim], the frame's own last.
        prompt: [batch, frames, prompt_tokens, prompt_dim]. fresh: [batch, frames], see `said`.
        astray: [batch, frames], 1 where a recording loses what it is about for long. Told so while it learns, a world
        does not lose it by itself: at play it is never told so.
        """
        found = self.level(sigma) + self.actions(actions.flatten(2)) + self.said(prompt, fresh)
        found = F.silu(found if astray is None else found + astray.unsqueeze(-1) * self.astray)
        return torch.cat([found, self.spelled(prompt, fresh)], -1) if self.words else found

    def spelled(self, prompt: Tensor, fresh: Tensor) -> Tensor:
        """The prompt's numbers as they stand beside the condition, past all that is nonlinear in it: which colours they
        name shall not depend on which keys are held. Shapes as in `said`.
        """
        return (HEARD + (1 - HEARD) * fresh).unsqueeze(-1) * prompt.flatten(-2)

    def said(self, prompt: Tensor, fresh: Tensor) -> Tensor:
        """What the prompt adds to the condition, [..., dim].

        A name is never quite the colour that is shown. So a world goes by the prompt while it is news, for FRESH ticks
        after a switch, and by the picture from then on.

        prompt: [..., prompt_tokens, prompt_dim]. fresh: [...], 1 where the prompt is news, 0 elsewhere.
        """
        fresh = fresh.unsqueeze(-1)
        heard = fresh + (1 - fresh) * self.heard
        said: Tensor = heard * self.prompt(prompt.flatten(-2)) + fresh * self.fresh
        return said

    def level(self, sigma: Tensor) -> Tensor:
        """What the noise level adds to the condition, [..., dim]. sigma: [...]."""
        frequency = torch.exp(
            -math.log(10_000) * torch.arange(NOISE_FREQUENCIES, device=sigma.device) / NOISE_FREQUENCIES
        )
        angle = 1000.0 * sigma.unsqueeze(-1) * frequency
        level: Tensor = self.noise_level(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return level

    def tokens(self, latent: Tensor, previous: Tensor) -> Tensor:
        """[batch, frames, tokens, dim] from each frame's latent and the latest latent of the frame before it."""
        return (
            self.embed(torch.cat([patchify(latent, self.patch), patchify(previous, self.patch)], dim=-1)) + self.place
        )

    def led_tokens(self, led: Tensor) -> Tensor:
        """What tokens of frames to be made are told of points that are led, [batch, frames, tokens, dim].

        led: [batch, frames, DragSpec.NUMBERS, rows, columns], see condition/drag.py.
        """
        assert self.led is not None, "only worlds with tracks are told any"
        found: Tensor = self.led(patchify(led, self.patch))
        return found

    def shared_modulation(self, condition: Tensor) -> Tensor:
        """[batch, frames, 6, dim], computed once for all blocks."""
        return self.adaln(condition).unflatten(-1, (6, -1))

    def latent(self, x: Tensor, condition: Tensor, recent: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The predicted clean latents [batch, frames, channels, rows, columns] from the last block's tokens.

        What is learned is the change since the frame before; how much of that frame, and of the noisy one, is kept at
        each place is learned too, and where in that frame it was: what stays the same, or only moves, need not pass
        through the blocks.
        """
        shift, scale = self.head_modulation(condition).unsqueeze(-2).chunk(2, dim=-1)
        hidden = F.layer_norm(x, (x.shape[-1],)) * (1 + scale) + shift
        before = [patchify(latent, self.patch) for latent in recent.chunk(RECENT, 2)]
        clearness = (1 - sigma)[:, :, None, None]
        made = self.made(hidden, self.carry(condition).unsqueeze(-2), before, clearness * patchify(noisy, self.patch))
        return unpatchify(made, self.patch, self.grid)

    def made(self, hidden: Tensor, carry: Tensor, recent: Sequence[Tensor], noisy: Tensor) -> Tensor:
        """The clean frame as tokens, from those of the RECENT frames before it, the nearest first, and of the noisy
        one, dimmed by its noise.
        """
        of_previous, of_noisy = self.keep(hidden).chunk(2, dim=-1)
        previous = recent[0] if self.moved is None else self.moved(hidden, recent[0])
        clean: Tensor = self.head(hidden) + (carry + of_previous) * previous + of_noisy * noisy
        return clean if self.conv_head is None else clean + self.conv_head(hidden, [clean, *recent])


class Moved(nn.Module):
    """The frame before as it is seen now: every cell a mean of those within `reach`, weighed by what the network knows.

    (Dynamic neural advection, Finn et al., arXiv:1605.07157, in latents.) Where the camera turns or walks, most of a
    picture is the one before somewhere else; to blocks alone that is a hard thing to learn, as every place has to be
    copied from another one through all of them.
    """

    def __init__(self, sizes: GeneratorSpec, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.grid, self.reach = sizes.patch, grid, sizes.reach
        down, across = self.reach
        places = (2 * down + 1) * (2 * across + 1)
        self.whence = nn.Linear(sizes.dim, places * sizes.patch**2)
        nn.init.zeros_(self.whence.weight)
        with torch.no_grad():
            self.whence.bias.zero_().view(places, -1)[places // 2] = STAYS

    def forward(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """hidden: [..., tokens, dim]. previous: [..., tokens, width]. Returns the latter's shape."""
        lead, (down, across) = previous.shape[:-2], self.reach
        weights = unpatchify(in_rows(self.whence(hidden)), self.patch, self.grid).softmax(2)
        cells = unpatchify(in_rows(previous), self.patch, self.grid)
        frames, _, rows, columns = cells.shape[1:]
        padded = F.pad(cells.flatten(0, 1), (across, across, down, down)).unflatten(0, (-1, frames)).unsqueeze(2)
        corners = [(row, column) for row in range(2 * down + 1) for column in range(2 * across + 1)]
        around = torch.cat([padded[..., y : y + rows, x : x + columns] for y, x in corners], 2)
        found = patchify((weights.unsqueeze(3) * around).sum(2), self.patch)
        return found.reshape(*lead, *found.shape[-2:])


class ConvHead(nn.Module):
    """What every cell of a frame lacks by the cells around it, there and in the frames before.

    Most of a picture is the one before, moved by less than a cell. Tokens of several cells say roughly what goes where;
    to shift what they hold by a fraction is a matter of neighbours, which convolutions are made for.
    """

    LAYERS = 2

    def __init__(self, sizes: GeneratorSpec, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.grid, width = sizes.patch, grid, sizes.conv_head
        self.told = nn.Linear(sizes.dim, self.LAYERS * 2 * width)
        self.seen = nn.Conv2d((1 + RECENT) * channels, width, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(self.LAYERS))
        self.lacking = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in (*self.told.parameters(), *self.lacking.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, frames: Sequence[Tensor]) -> Tensor:
        """hidden: [..., tokens, dim]. frames: [..., tokens, width] each, the one to be corrected first. Returns that
        one's shape.
        """
        lead, (rows, columns) = hidden.shape[:-2], self.grid
        cells = unpatchify(in_rows(torch.cat(list(frames), -1)), self.patch, self.grid).flatten(0, 1)
        told = self.told(hidden).transpose(-1, -2).reshape(-1, self.told.out_features, rows, columns)
        told = F.interpolate(told, scale_factor=self.patch).chunk(2 * self.LAYERS, 1)
        x = self.seen(cells)
        for layer, scale, shift in zip(self.layers, told[::2], told[1::2], strict=True):
            x = x + layer(F.gelu(x * (1 + scale) + shift, approximate="tanh"))
        lacking = patchify(self.lacking(F.gelu(x, approximate="tanh")).unsqueeze(1), self.patch)
        return lacking.reshape(*lead, *lacking.shape[-2:])


def in_rows(tokens: Tensor) -> Tensor:
    """[batch, frames, tokens, width], as patchify and unpatchify have it; at play these two are one axis."""
    return tokens if tokens.dim() == 4 else tokens.unsqueeze(1)


def first_noise(noise: Tensor) -> Tensor:
    """What a frame begins from, [..., channels, rows, columns] like `noise`: as many numbers as channels, the same at
    every place.

    With a number for every place, each would be sampled by itself and the picture torn: what is open about a next frame
    is few things, and they concern all of it (FGN, arXiv:2506.10772, draws 32 numbers for the weather of the world).
    """
    rows, columns = noise.shape[-2:]
    common = noise.mean((-2, -1), keepdim=True) * math.sqrt(rows * columns)
    return common.expand(*[-1] * (noise.dim() - 2), rows, columns)


def drifted(slow: Tensor, fresh: Tensor) -> Tensor:
    """Slow numbers after a tick, standard normal like fresh ones and like those before.

    What is open over many ticks, as where a road leads, is decided a little in each of them. By numbers that last a
    world can decide it the same way all the time (noise that frames have in common: PYoCo, arXiv:2305.10474).
    """
    return SLOWLY * slow + math.sqrt(1 - SLOWLY**2) * fresh


def turn_space(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the row and column channels of [..., head_dim], leave those of time."""
    space = x.shape[-1] - time_dim(x.shape[-1])
    return torch.cat([turn(x[..., :space], cos, sin), x[..., space:]], dim=-1)


def turn_time(keys: Tensor, distance: Tensor) -> Tensor:
    """Turn cached keys by how far they lie before their query.

    keys: [..., frames, tokens, heads, head_dim]. distance: [..., frames] frames.
    """
    head_dim = keys.shape[-1]
    space = head_dim - time_dim(head_dim)
    angles = time_angles(distance, head_dim).unsqueeze(-2).unsqueeze(-2)
    cos, sin = angles.cos().to(keys.dtype), angles.sin().to(keys.dtype)
    return torch.cat([keys[..., :space], turn(keys[..., space:], cos, sin)], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention without a mask. q: [..., queries, heads, head_dim]; k, v: [..., keys, heads, head_dim].

    Returns [..., queries, heads · head_dim]. On a CPU that trains, plain products: the fused kernel's backward is
    slower.
    """
    lead = q.shape[:-3]  # the fused kernels want exactly four axes
    q, k, v = (x.flatten(0, -4).transpose(-2, -3) for x in (q, k, v))
    if q.device.type == "cpu" and torch.is_grad_enabled():
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)
        out = weights.to(v.dtype) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(-2, -3).flatten(-2).unflatten(0, lead)


def patchify(latent: Tensor, patch: int) -> Tensor:
    """[batch, frames, channels, rows, columns] to [batch, frames, tokens, channels · patch²]."""
    batch, frames, channels, rows, columns = latent.shape
    cells = latent.view(batch, frames, channels, rows // patch, patch, columns // patch, patch)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, frames, -1, channels * patch**2)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of patchify."""
    batch, frames, _, width = tokens.shape
    rows, columns = grid
    cells = tokens.view(batch, frames, rows, columns, width // patch**2, patch, patch)
    return cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, -1, rows * patch, columns * patch)


def _mlp(size_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size_in, dim), nn.SiLU(), nn.Linear(dim, dim))

"""The generator over whole clips at once, for training: every frame is denoised in parallel, each from its own history.

Two streams run side by side: the clean one plays the role of the cache, the noisy one is what is learned. A noisy frame
sees clean frames before its *tile* and the noisy frames of its own tile before it; a tile of one frame is frame-wise
denoising, a tile of rising sigmas a rolling window. (Teacher forcing with a block-causal mask, as in Causal Forcing; the
tiles are those of Rolling Forcing's training.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldmodel.transformer.generator import Block, Generator, attend, turn_time


@dataclass(frozen=True)
class Clip:
    """What both streams are made of; frame 0 is the sink, frames 1… follow each other in time.

    clean: [batch, frames, channels, rows, columns], with whatever noise history shall have
    clean_sigma: [batch, frames]
    actions: [batch, frames, history, action_dim]
    clean_prompt, prompt: [batch, frames, prompt_tokens, prompt_dim] as the history and as the noisy frames see it
    """

    clean: Tensor
    clean_sigma: Tensor
    actions: Tensor
    clean_prompt: Tensor
    prompt: Tensor


def denoise_clip(
    generator: Generator,
    clip: Clip,
    noisy: Tensor,
    sigma: Tensor,
    tile_start: Tensor,
    window: int,
    layer: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Predict x0 of every noisy frame, [batch, frames, channels, rows, columns].

    noisy: like clip.clean. sigma: [batch, frames]. tile_start: [batch, frames] int64, the first frame of each frame's tile.
    layer: `clip_layer` or a compiled form of it.
    """
    layer = layer or clip_layer
    in_tile = tile_membership(tile_start, window)
    before = previous_frames(clip.clean)
    before_noisy = torch.where(in_tile[:, :, -1, None, None, None], previous_frames(noisy), before)
    condition = generator.condition(
        torch.cat([clip.clean_sigma, sigma], 1),
        torch.cat([clip.actions, clip.actions], 1),
        torch.cat([clip.clean_prompt, clip.prompt], 1),
    )
    shared = generator.shared_modulation(condition)
    x = generator.tokens(torch.cat([clip.clean, noisy], 1), torch.cat([before, before_noisy], 1))
    for block in generator.blocks:
        x = layer(block, x, shared, in_tile, generator.space_cos, generator.space_sin)
    frames = noisy.shape[1]
    return generator.latent(x[:, frames:], condition[:, frames:])


def clip_layer(block: Block, x: Tensor, shared: Tensor, in_tile: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One block over both streams. x: [batch, 2 · frames, tokens, dim], clean frames first."""
    q, k, v = block.project(x, shared, cos, sin)
    k, v = two_stream_slots(k, in_tile), two_stream_slots(v, in_tile)
    return block.finish(x, attend(q, turned_slots(k), v.flatten(2, 3)), shared)


def clean_layer(
    block: Block, x: Tensor, shared: Tensor, window: int, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One block over the clean stream alone: the tokens after it, and its keys and values, to be cached."""
    q, k, v = block.project(x, shared, cos, sin)
    keys, values = torch.stack(clean_slots(k, window), 2), torch.stack(clean_slots(v, window), 2)
    return block.finish(x, attend(q, turned_slots(keys), values.flatten(2, 3)), shared), k, v


def clean_slots(clean: Tensor, window: int) -> list[Tensor]:
    """What each frame attends to: the sink, the frames `window` … 1 before it, itself; [batch, frames, …] each.

    Before the first frame of the clip stands that first frame.
    """
    return [clean[:, :1].expand_as(clean), *(shifted(clean, distance) for distance in range(window, 0, -1)), clean]


def two_stream_slots(fresh: Tensor, in_tile: Tensor) -> Tensor:
    """`clean_slots` for both streams, [batch, 2 · frames, 1 + window + 1, tokens, heads, head_dim]."""
    window = in_tile.shape[2]
    clean, noisy = fresh.chunk(2, dim=1)
    slots = clean_slots(clean, window)
    slots_noisy = [slots[0]]
    for slot, distance in enumerate(range(window, 0, -1)):
        slots_noisy.append(
            torch.where(in_tile[:, :, slot, None, None, None], shifted(noisy, distance), slots[1 + slot])
        )
    return torch.cat([torch.stack(slots, 2), torch.stack([*slots_noisy, noisy], 2)], 1)


def turned_slots(keys: Tensor) -> Tensor:
    """Keys turned by their distance in time, the sink by window + 1: [batch, frames, slots · tokens, heads, head_dim]."""
    distance = torch.arange(keys.shape[2] - 1, -1, -1, device=keys.device)
    return turn_time(keys, distance).flatten(2, 3)


def tile_membership(tile_start: Tensor, window: int) -> Tensor:
    """Whether the frame `distance` before belongs to the same tile: bool [batch, frames, window], farthest first."""
    frame = torch.arange(tile_start.shape[1], device=tile_start.device)
    distance = torch.arange(window, 0, -1, device=tile_start.device)
    return (frame[:, None] - distance[None, :])[None] >= tile_start[:, :, None]


def shifted(frames: Tensor, distance: int) -> Tensor:
    """Every frame's predecessor `distance` frames back; frame 1 stands in for all before it, the sink stays itself."""
    count = frames.shape[1]
    distance = min(distance, count - 2)
    return torch.cat(
        [frames[:, :1], frames[:, 1:2].expand(-1, distance, *frames.shape[2:]), frames[:, 1 : count - distance]], 1
    )


def previous_frames(latents: Tensor) -> Tensor:
    """The latent before each frame, as the generator's second input; the sink and frame 1 stand in for their own."""
    return shifted(latents, 1)

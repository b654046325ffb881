"""The generator over whole clips at once, for training: every frame is denoised in parallel, each from its own history.

Streams run side by side: the clean one plays the role of the cache, the noisy ones are what is learned, one for each
draw of the noise. A noisy frame sees clean frames before its *tile* and the noisy frames of its own tile before it; a
tile of one frame is frame-wise denoising, a tile of rising sigmas a rolling window. (Teacher forcing with a
block-causal mask, as in Causal Forcing; the tiles are those of Rolling Forcing's training.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.transformer.generator import RECENT, Block, Generator, attend, turn_time


@dataclass(frozen=True)
class Clip:
    """What both streams are made of; frame 0 is the sink, frames 1… follow each other in time.

    clean: [batch, frames, channels, rows, columns], with whatever noise history shall have
    clean_sigma: [batch, frames]
    actions: [batch, frames, history, action_dim]
    clean_prompt, prompt: [batch, frames, prompt_tokens, prompt_dim] as the history and as the noisy frames see it
    clean_fresh, fresh: [batch, frames], 1 where that prompt is news
    astray: [batch, frames], 1 where noisy frames are told that what the game is about stays out of view; None: never
    led: [batch, frames, DragSpec.NUMBERS, rows, columns], of points that lead to noisy frames, see condition/drag.py
    """

    clean: Tensor
    clean_sigma: Tensor
    actions: Tensor
    clean_prompt: Tensor
    prompt: Tensor
    clean_fresh: Tensor
    fresh: Tensor
    astray: Tensor | None = None
    led: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Clip:
        """All that is told, changed in the same way."""
        return Clip(**{name: change(part) for name, part in vars(self).items() if part is not None})

    def led_at(self, frame: int) -> Tensor | None:
        """[batch, DragSpec.NUMBERS, rows, columns], as the tick wants it."""
        return None if self.led is None else self.led[:, frame]

    def repeated(self, times: int) -> Clip:
        """Each clip so many times in a row."""
        return self.each(lambda part: part.repeat_interleave(times, 0))


def denoise_clip(
    generator: Generator,
    clip: Clip,
    noisy: Tensor,
    sigma: Tensor,
    tile_start: Tensor | None,
    window: int,
    layer: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Predict x0 of every noisy frame, [batch, draws · frames, channels, rows, columns].

    noisy: for each draw a stream like clip.clean, side by side along the frames. sigma: [batch, draws · frames].
    tile_start: [batch, frames] int64, the first frame of each frame's tile; None where every frame is its own tile.
    layer: `clip_layer` or a compiled form of it.
    """
    layer = layer or clip_layer
    frames = clip.clean.shape[1]
    draws = noisy.shape[1] // frames
    recent = recent_frames(clip.clean)
    recent_noisy, in_tile = recent.repeat(1, draws, 1, 1, 1), None
    if tile_start is not None:
        in_tile = tile_membership(tile_start, window)
        own = in_tile[:, :, [-1 - back for back in range(RECENT)]].repeat_interleave(noisy.shape[2], 2)
        of_noisy = torch.cat([recent_frames(stream) for stream in noisy.chunk(draws, 1)], 1)
        recent_noisy = torch.where(own.repeat(1, draws, 1)[:, :, :, None, None], of_noisy, recent_noisy)
    condition = generator.condition(
        torch.cat([clip.clean_sigma, sigma], 1),
        torch.cat([clip.actions] * (1 + draws), 1),
        torch.cat([clip.clean_prompt, *[clip.prompt] * draws], 1),
        torch.cat([clip.clean_fresh, *[clip.fresh] * draws], 1),
        None if clip.astray is None else torch.cat([torch.zeros_like(clip.astray), *[clip.astray] * draws], 1),
    )
    shared = generator.shared_modulation(condition)
    x = generator.tokens(torch.cat([clip.clean, noisy], 1), torch.cat([recent, recent_noisy], 1))
    if clip.led is not None:
        led = generator.led_tokens(clip.led).repeat(1, draws, 1, 1)
        x = x + F.pad(led, (0, 0, 0, 0, frames, 0))
    for block in generator.layers:
        last = block is generator.layers[-1]
        x = layer(block, x, shared, in_tile, window, 1 + draws, generator.space_cos, generator.space_sin, last)
    return generator.latent(x, condition[:, frames:], recent_noisy, noisy, sigma)


def clip_layer(
    block: Block,
    x: Tensor,
    shared: Tensor,
    in_tile: Tensor | None,
    window: int,
    streams: int,
    cos: Tensor,
    sin: Tensor,
    last: bool,
) -> Tensor:
    """One block over all streams. x: [batch, streams · frames, tokens, dim], clean frames first; the `last` block gives
    the noisy ones alone.
    """
    q, k, v = block.project(x, shared, cos, sin)
    q, k, sink = turned_clip(q, k, window, streams)
    keys = stream_slots(k, sink, in_tile, window, streams)
    values = stream_slots(v, v[:, :1].expand_as(v), in_tile, window, streams)
    if last:  # of clean frames, nothing but keys and values is wanted
        frames = x.shape[1] // streams
        x, shared, q = (part[:, frames:] for part in (x, shared, q))
        keys, values = keys[1:], values[1:]
    return block.finish(x, attend(q, torch.cat(keys, 1), torch.cat(values, 1)), shared)


def clean_layer(
    block: Block, x: Tensor, shared: Tensor, window: int, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One block over the clean stream alone: the tokens after it, and its keys and values, to be cached."""
    q, k, v = block.project(x, shared, cos, sin)
    turned_q, turned_k, sink = turned_clip(q, k, window, streams=1)
    keys = torch.cat(clean_slots(turned_k, sink, window), 2)
    values = torch.cat(clean_slots(v, v[:, :1].expand_as(v), window), 2)
    return block.finish(x, attend(turned_q, keys, values), shared), k, v


def turned_clip(q: Tensor, k: Tensor, window: int, streams: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys turned in time by their frame's number, and the sink's keys as each frame sees them.

    For every frame the sink stands window + 1 frames before it. All are [batch, streams · frames, tokens, heads,
    head_dim].
    """
    frame = torch.arange(q.shape[1] // streams, device=q.device).repeat(streams)
    sink = turn_time(k[:, :1].expand_as(k), window + 1 - frame)
    return turn_time(q, -frame), turn_time(k, -frame), sink


def clean_slots(clean: Tensor, sink: Tensor, window: int) -> list[Tensor]:
    """What each frame attends to: the sink, the frames `window` … 1 before it, itself; [batch, frames, …] each.

    Before the first frame of the clip stands that first frame.
    """
    return [sink, *(shifted(clean, distance) for distance in range(window, 0, -1)), clean]


def stream_slots(fresh: Tensor, sink: Tensor, in_tile: Tensor | None, window: int, streams: int) -> list[Tensor]:
    """`clean_slots` for the clean stream and every noisy one, [batch, frames, (1 + window + 1) · tokens, heads,
    head_dim] each.
    """
    clean, *noisy = fresh.chunk(streams, dim=1)
    sink, *sinks_noisy = sink.chunk(streams, dim=1)
    slots = clean_slots(clean, sink, window)
    found = [torch.cat(slots, 2)]
    for stream, sink_noisy in zip(noisy, sinks_noisy, strict=True):
        slots_noisy = [sink_noisy, *slots[1:-1], stream]
        if in_tile is not None:
            for slot, distance in enumerate(range(window, 0, -1)):
                own = in_tile[:, :, slot, None, None, None]
                slots_noisy[1 + slot] = torch.where(own, shifted(stream, distance), slots[1 + slot])
        found.append(torch.cat(slots_noisy, 2))
    return found


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


def recent_frames(latents: Tensor) -> Tensor:
    """The RECENT latents before each frame as channels, the nearest first; the sink and frame 1 stand in for what
    was before.
    """
    return torch.cat([shifted(latents, distance) for distance in range(1, RECENT + 1)], 2)

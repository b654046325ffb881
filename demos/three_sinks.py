"""One world under three sinks side by side: same weights, same noise; only what is remembered, and where it stands,
differs.

    python -m demos.three_sinks CHECKPOINT [--codec FILE]                 in a window, Esc leaves
    python -m demos.three_sinks --headless --blocks 20 --video F.mp4      without one

Left a static sink at its absolute place, in the middle one counted within the cache, right one that averages what
leaves. Without a checkpoint the transformer's weights are random: the three still part ways, but there is nothing to
recognise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from runtime.presenters import VideoFile
from worldmodel.cache.base import Cache
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.errors import SpecError
from worldmodel.families.importing import plan_import
from worldmodel.families.wan_transformer import WanSpec
from worldmodel.families.wan_world import WanWorld, WanWorldSpec
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable
from worldmodel.schedule.sampler import Stream

WINDOW, SINK, CHUNK = 9, 3, 3
SINKS: dict[str, Cache] = {
    "absolute": SinkWindow(WINDOW, SINK, CHUNK),
    "relative": RelativeSinkWindow(WINDOW, SINK, CHUNK),
    "average": EmaSink(WINDOW, SINK, CHUNK, alpha=0.9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="of any text-to-video family of the Wan line")
    parser.add_argument("--codec", type=Path)
    parser.add_argument("--headless", action="store_true", help="no window")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--video", type=Path, help="write what is seen")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    world = imported(arguments.checkpoint, arguments.codec) if arguments.checkpoint else random_world()
    print(f"from left to right: {', '.join(SINKS)}")
    hertz = world.about.tick_hz
    with VideoFile(arguments.video, hertz) if arguments.video else nullcontext() as video:
        pictures = side_by_side(world, arguments.blocks, arguments.seed)
        for picture in pictures if arguments.headless else shown(pictures, hertz):
            if video is not None:
                video.show(picture)


@torch.inference_mode()
def side_by_side(world: WanWorld, blocks: int, seed: int) -> Iterator[np.ndarray]:
    """Every picture of every block, the three worlds next to each other: uint8 [height, 3 · width, 3]."""
    schedule, size = world.spec.schedule, (world.spec.rows, world.spec.columns)
    streams = [Stream(world.transformer, cache, schedule, size, fused=True) for cache in SINKS.values()]
    prompt = torch.zeros(1, *world.about.prompt_shape)
    states = [stream.prompted(stream.empty(), prompt) for stream in streams]
    memories = [world.codec.empty_state(1, *size) for _ in streams]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(blocks):
        count = streams[0].noises(streams[0].plan(states[0])) * CHUNK
        noise = torch.randn(1, count, world.spec.transformer.out_channels, *size, generator=generator)
        rows = []
        for at, stream in enumerate(streams):
            latents, states[at] = stream.tick(states[at], noise)
            pictures, memories[at] = world.codec.decode(latents, memories[at])
            rows.append(world.codec.to_bytes(pictures)[0])
        yield from torch.cat(rows, 2).numpy()


def shown(pictures: Iterator[np.ndarray], hertz: float) -> Iterator[np.ndarray]:
    """Each picture, once it has been on the screen."""
    import pygame

    pygame.init()
    screen, clock = None, pygame.time.Clock()
    for picture in pictures:
        screen = screen or pygame.display.set_mode((picture.shape[1], picture.shape[0]))
        if any(
            event.type == pygame.QUIT or getattr(event, "key", None) == pygame.K_ESCAPE for event in pygame.event.get()
        ):
            return
        screen.blit(pygame.surfarray.make_surface(picture.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        clock.tick(hertz)
        yield picture


def imported(checkpoint: Path, codec: Path | None) -> WanWorld:
    world = plan_import(checkpoint, codec).load()
    if not isinstance(world, WanWorld) or world.spec.transformer.actions or not world.spec.transformer.text_dim:
        raise SpecError(f"{checkpoint}: this demo needs a text-to-video transformer of the Wan line")
    return world


def random_world() -> WanWorld:
    torch.manual_seed(0)
    transformer = WanSpec(dim=48, ffn_dim=96, heads=2, layers=2, freq_dim=32, in_channels=4, out_channels=4, text_dim=8)
    schedule = FewStep(FlowTable().warp((1000, 500)))
    spec = WanWorldSpec("random", transformer, SINKS["absolute"], schedule, rows=12, columns=16, prompt_rows=4)
    world = WanWorld(spec)
    for parameter in world.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return world.eval()


if __name__ == "__main__":
    main()

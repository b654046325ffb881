"""A Gymnasium loop over a world: a scripted policy looks at each observation and steers to where the road goes on.

    python -m demos.gym_loop [WORLD] [--start driving]           in a window, then a plot: gym_loop.png
    python -m demos.gym_loop mock --headless --ticks 240 --plot drive.png --video drive.mp4

The plot shows some observations, where the policy saw the road in each of them, and what it pressed. `WorldEnv` is an
ordinary environment: whatever takes a gymnasium.Env takes a world. Needs the train extra.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from runtime.errors import MissingExtraError, WorldloopError
from runtime.presenters import VideoFile
from runtime.window import has_display
from runtime.world import DEFAULT_WORLD, World

SYNONYMS = {"left": ("left", "turn_left"), "right": ("right", "turn_right"), "gas": ("gas", "forward")}
ALIKE = 40  # levels, summed over the colours, in which the road may differ from where the car began
TURN = 0.1  # how far aside the road must lie to be steered to; 1 is the edge of the picture
PICTURES = 8


class RoadFollower:
    """Steers by the picture alone: to the side on which the colour lies that the car stood on in the first one."""

    def __init__(self, actions: tuple[str, ...]) -> None:
        self.actions, self.road, self.aside = actions, None, 0.0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """observation: uint8 [height, width, 3]. Returns int8 [actions], 1 where pressed."""
        height, width, _ = observation.shape
        if self.road is None:
            under = observation[int(0.62 * height) : int(0.67 * height) + 1, int(0.44 * width) : int(0.56 * width) + 1]
            self.road = np.median(under.reshape(-1, 3), 0)
        ahead = observation[int(0.2 * height) : int(0.5 * height) + 1].astype(float)
        like = np.exp(-np.abs(ahead - self.road).sum(-1) / ALIKE)  # [rows, width]
        before, self.aside = self.aside, float((like * np.linspace(-1, 1, width)).sum() / (like.sum() + 1e-3))
        turn = self.aside + 3 * (self.aside - before)  # the change is damping: without it the car swings
        wanted = {"gas"} | ({"left"} if turn < -TURN else {"right"} if turn > TURN else set())
        pressed = {name for wish in wanted for name in SYNONYMS[wish]}
        return np.array([name in pressed for name in self.actions], np.int8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", nargs="?", default=DEFAULT_WORLD)
    parser.add_argument("--start", help="one of the world's starts")
    parser.add_argument("--headless", action="store_true", help="no window")
    parser.add_argument("--ticks", type=int, default=150, help="when the episode is cut off")
    parser.add_argument("--plot", type=Path, default=Path("gym_loop.png"))
    parser.add_argument("--video", type=Path, help="write what is seen")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.headless and not has_display():
        parser.error("no window can be opened: set DISPLAY, or use --headless")
    try:
        drive(arguments)
    except WorldloopError as error:
        parser.error(str(error))


def drive(arguments: argparse.Namespace) -> None:
    from runtime.env import WorldEnv

    world = World.open(arguments.world)
    mode = "rgb_array" if arguments.headless else "human"
    env = WorldEnv(world, render_mode=mode, max_ticks=arguments.ticks, start=arguments.start)
    policy = RoadFollower(world.manifest.action_names)
    seen: list[tuple[np.ndarray, np.ndarray, float]] = []  # observation, action, where the road was
    rewards, over = 0.0, False
    with VideoFile(arguments.video, world.manifest.tick_hz) if arguments.video else nullcontext() as video:
        observation, info = env.reset(seed=arguments.seed)
        while not over:
            action = policy(observation)
            seen.append((observation, action, policy.aside))
            observation, reward, terminated, truncated, info = env.step(action)
            rewards, over = rewards + reward, terminated or truncated
            if video is not None:
                video.show(observation)
    env.close()
    plot(arguments.plot, world, seen, info["prompt"])
    print(f"{len(seen)} ticks, return {rewards:g}, plot in {arguments.plot}")


def plot(path: Path, world: World, seen: list[tuple[np.ndarray, np.ndarray, float]], prompt: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("the plot needs matplotlib: pip install 'worldloop[train]'") from error
    observations, actions, asides = zip(*seen, strict=True)
    manifest = world.manifest
    figure = Figure(figsize=(12, 5), layout="constrained")
    pictures, road, keys = figure.subplots(3, 1, sharex=True, height_ratios=[1.5, 1.5, 1])
    each = len(seen) / PICTURES
    for n in range(min(PICTURES, len(seen))):
        pictures.imshow(observations[int((n + 0.5) * each)], extent=((n + 0.03) * each, (n + 0.97) * each, 0, 1))
    pictures.set(xlim=(0, len(seen)), ylim=(0, 1), aspect="auto", yticks=[], title=f"{manifest.title}: {prompt}")
    pictures.set_frame_on(False)
    pictures.set_box_aspect(manifest.height / manifest.width / PICTURES)
    road.axhspan(-TURN, TURN, color="0.92")
    road.plot(asides, color="tab:red")
    road.set(ylim=(1, -1), yticks=[1, 0, -1], yticklabels=["right", "ahead", "left"], ylabel="the road lies")
    for row in range(len(manifest.actions)):
        held = [(tick, 1) for tick, action in enumerate(actions) if action[row]]
        keys.broken_barh(held, (row - 0.4, 0.8), color=f"C{row}")
    rows = len(manifest.actions)
    keys.set(yticks=range(rows), yticklabels=manifest.action_names, ylim=(rows - 0.4, -0.6), xlabel="tick")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()

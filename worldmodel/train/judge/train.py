"""Train the judge of an environment on a recording of it (`worldloop train judge`): minutes on one core.

The eye learns, without labels by people, what such an eye must see: which damage was done to a frame and how much of
it, the environment's true state where one frame shows it, and which of many frames is two ticks away from this one
(InfoNCE, arXiv:1807.03748). The hands learn the keys from how the frames move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from worldmodel.errors import DatasetError
from worldmodel.train.dataset import Dataset, DatasetInfo
from worldmodel.train.frames import as_input
from worldmodel.train.judge.eye import WIDTHS, Eye
from worldmodel.train.judge.hands import AFTER, BEFORE, Hands, balanced_accuracy, movements, windows
from worldmodel.train.judge.judge import Judge
from worldmodel.train.judge.scenes import learn_scenes
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team

CLIP = 200  # frames in a row
HELD_OUT = 0.1  # of the clips
APART = 2  # ticks between the two frames of a pair
EPISODES, PAIRS = 8, 6  # of a step: clips, and pairs of frames from each
HANDS_BATCH = 1024
SOME = 8  # ticks between the frames of a clip from which scenes are learned
WARMUP = 20  # steps


@dataclass(frozen=True)
class Clips:
    """Frames in a row, and what is known of each, as arrays [clips, CLIP, …]."""

    frames: NDArray[np.uint8]
    actions: NDArray[np.bool_]
    facts: NDArray[np.float32]
    scene: NDArray[np.int32]
    name: NDArray[np.str_]  # of the scene


class Learning(nn.Module):
    """The eye, the hands and what only training needs of them."""

    def __init__(self, numbers: int, keys: int, facts: int) -> None:
        super().__init__()
        self.eye, self.hands = Eye(), Hands(numbers, keys)
        self.damage = nn.Sequential(nn.Linear(sum(WIDTHS), 64), nn.ReLU(), nn.Linear(64, len(DAMAGES)))
        self.state = nn.Linear(9 * WIDTHS[-1], facts)
        self.moment = nn.Linear(9 * WIDTHS[-1], 32)


def train_judge(
    data: Path, out: Path, steps: int = 400, frames: int = 14_000, seed: int = 0, resume: bool = False
) -> dict[str, float]:
    """Train on about `frames` frames from all over a recording; writes OUT/ADAPTER.safetensors.

    Returns steps, seconds, losses, and on held-out clips each key's balanced accuracy, and how often a frame's scene is
    told right, where there are several.
    """
    torch.manual_seed(seed)
    dataset = Dataset(data)
    clips = read_clips(dataset, max(2, frames // CLIP), np.random.default_rng(seed))
    moves = _moves(clips, dataset.info.adapter, out / "moves.npy" if resume else None)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "moves.npy", moves)
    learning, figures = _learn(dataset.info, clips, moves, out, steps, resume)
    scenes, scene, told_apart = _scenes(learning.eye, clips)
    judge = Judge(
        dataset.info.adapter, dataset.info.height, dataset.info.width, tuple(dataset.info.actions), learning.eye,
        learning.hands, about={"frames": clips.actions.shape[0] * CLIP, "steps": steps, "split": dataset.info.split},
        scenes=scenes, scene=scene,
    )  # fmt: skip
    judge.save(out / f"{judge.adapter}.safetensors")
    return figures | told_apart


def _scenes(eye: Eye, clips: Clips) -> tuple[tuple[str, ...], nn.Linear | None, dict[str, float]]:
    """Names of the scenes, what tells them apart, and how often it is right on held-out clips; one scene needs none."""
    names = sorted(set(clips.name.ravel().tolist()))
    if len(names) < 2:
        return (), None, {}
    some = slice(None, None, SOME)
    with torch.no_grad():
        parts = [eye.describe(as_input(torch.from_numpy(frames))) for frames in clips.frames[:, some]]
    seen, scene = torch.stack(parts), torch.from_numpy(np.searchsorted(names, clips.name[:, some]))
    held_out = max(1, round(HELD_OUT * len(clips.frames)))
    layer = learn_scenes(seen[held_out:].flatten(0, 1), scene[held_out:].flatten(), len(names))
    right = (layer(seen[:held_out]).argmax(-1) == scene[:held_out]).float().mean()
    return tuple(names), layer, {"scene": float(right)}


def read_clips(dataset: Dataset, count: int, rng: np.random.Generator) -> Clips:
    """`count` clips from all over a recording."""
    usable = [episode for episode in dataset.episodes if len(episode) >= CLIP]
    if len(usable) < 2:
        raise DatasetError(f"{dataset.folder}: {len(usable)} episodes of {CLIP} ticks or more; a judge needs two")
    order = rng.permutation(len(usable))
    parts: dict[str, list[NDArray]] = {name: [] for name in ("frames", "actions", "facts", "scene")}
    names: list[list[str]] = []
    for index in range(count):
        episode = usable[order[index % len(order)]]
        start = episode.start + int(rng.integers(len(episode) - CLIP + 1))
        for name, found in parts.items():
            found.append(dataset.read(episode.shard, name, start, start + CLIP))
        facts = dataset.scenes(episode.shard)
        names.append([str(facts[number].get("scene", dataset.info.adapter)) for number in parts["scene"][-1]])
    arrays = {name: np.stack(found) for name, found in parts.items()}
    return Clips(**arrays | {"actions": arrays["actions"].astype(bool)}, name=np.array(names))


def _moves(clips: Clips, adapter: str, known: Path | None) -> NDArray[np.float32]:
    """How each frame differs from the one before, [clips, CLIP - 1, numbers]. Slow, so a resumed run reads it."""
    if known is not None and known.exists():
        found: NDArray[np.float32] = np.load(known)
        if found.shape[:2] == (len(clips.frames), CLIP - 1):
            return found
    return np.stack([movements(adapter, clip) for clip in tqdm(clips.frames, desc="movements", unit="clip")])


def _learn(
    info: DatasetInfo, clips: Clips, moves: NDArray[np.float32], out: Path, steps: int, resume: bool
) -> tuple[Learning, dict[str, float]]:
    held_out = max(1, round(HELD_OUT * len(clips.frames)))
    seen, held = _windows(clips, moves, slice(held_out, None))
    learning = Learning(moves.shape[-1], len(info.actions), len(info.facts))
    learning.hands.typical.copy_(seen.mean((0, 1)))
    learning.hands.spread.copy_(seen.std((0, 1)) + 1e-6)
    rarity = (1 - held.mean(0)) / held.mean(0).clamp(min=1e-3)
    facts = torch.from_numpy(clips.facts)
    facts = (facts - facts.mean((0, 1))) / (facts.std((0, 1)) + 1e-6)
    groups = [{"params": learning.hands.parameters(), "lr": 6e-3}]
    groups += [{"params": part.parameters()} for name, part in learning.named_children() if name != "hands"]
    optimiser = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.01)
    run = StepRun(out, "judge", learning, optimiser, steps, resume)

    def step(_: int) -> dict[str, Tensor]:
        pictures, state = _pairs(clips, facts, held_out)
        losses = eye_losses(learning, pictures, state)
        chosen = torch.randint(len(seen), (HANDS_BATCH,))
        said = learning.hands(seen[chosen])
        losses["keys"] = F.binary_cross_entropy_with_logits(said, held[chosen], pos_weight=rarity)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def show(step: int) -> dict[str, float]:
        seen, held = _windows(clips, moves, slice(held_out))
        right = balanced_accuracy(held.numpy() > 0, (learning.hands(seen) > 0).numpy())
        return {name: float(share) for name, share in zip(info.actions, right, strict=True)}

    figures = run.loop(step, show)
    load_weights(learning, out / "judge.safetensors")
    learning.eye.set_units(*_of_one_scene(clips, 600))
    return learning, figures


def _of_one_scene(clips: Clips, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` pairs of pictures, those of a pair from one clip and scene, float32 [pairs, 3, height, width]."""
    which = torch.randint(len(clips.frames), (count,)).numpy()
    times = torch.randint(CLIP, (2, count)).numpy()
    same = clips.scene[which, times[0]] == clips.scene[which, times[1]]
    first, second = (as_input(torch.from_numpy(clips.frames[which[same], time[same]])) for time in times)
    return first, second


def _windows(clips: Clips, moves: NDArray[np.float32], chosen: slice) -> tuple[Tensor, Tensor]:
    """Movements around each tick [n, window, numbers], none over a change of scene, and the keys, float [n, keys]."""
    seen = windows(moves[chosen].swapaxes(0, 1))
    held = clips.actions[chosen].swapaxes(0, 1)[1 + BEFORE : CLIP - AFTER]
    scene = clips.scene[chosen].swapaxes(0, 1)
    same = scene[: len(seen)] == scene[-len(seen) :]
    return torch.from_numpy(seen[same]), torch.from_numpy(held[same]).float()


def _pairs(clips: Clips, facts: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Frames of some clips and those APART ticks later, float32 [2, batch, 3, height, width]; the first ones' facts."""
    which = torch.randperm(len(clips.frames) - first)[:EPISODES] + first
    which = which.repeat_interleave(PAIRS)
    when = torch.randint(CLIP - APART, (len(which),))
    pair = [torch.from_numpy(clips.frames[which.numpy(), (when + later).numpy()]) for later in (0, APART)]
    return torch.stack([as_input(part) for part in pair]), facts[which, when]


def eye_losses(learning: Learning, pairs: Tensor, facts: Tensor) -> dict[str, Tensor]:
    """The three lessons. pairs: [2, batch, 3, height, width]. facts: [batch, facts], standardised."""
    count = pairs.shape[1]
    damaged, amounts = damage(pairs[0], pairs[1])
    levels = learning.eye(torch.cat([pairs.flatten(0, 1), damaged]))
    strengths = torch.cat([level.mean((2, 3)) for level in levels], 1)[[*range(count), *range(2 * count, 3 * count)]]
    wanted = torch.cat([torch.zeros_like(amounts), amounts])
    told = F.smooth_l1_loss(learning.damage(strengths), wanted, beta=0.1)
    coarse = F.adaptive_avg_pool2d(levels[-1][: 2 * count], 3).flatten(1)
    state = F.smooth_l1_loss(learning.state(coarse[:count]), facts)
    first, second = F.normalize(learning.moment(coarse), dim=1).split(count)
    moment = F.cross_entropy(first @ second.T / 0.1, torch.arange(count))
    return {"damage": 4 * told, "state": state, "moment": 0.3 * moment}


# -- damages ----------------------------------------------------------------------------------------------------------


def damage(pictures: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Do one damage to each picture, the kinds in turn. Returns the pictures and the amounts [batch, kinds] in 0…1."""
    amounts = torch.zeros(len(pictures), len(DAMAGES))
    made = torch.empty_like(pictures)
    for kind, spoil in enumerate(DAMAGES):
        rows = slice(kind, None, len(DAMAGES))
        amount = torch.rand(len(pictures[rows]), 1, 1, 1)
        made[rows] = spoil(pictures[rows], others[rows], amount)
        amounts[rows, kind] = amount.flatten()
    return made, amounts


def _blur(pictures: Tensor, others: Tensor, amount: Tensor) -> Tensor:
    smooth = F.avg_pool2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), 5, 1)
    return torch.lerp(pictures, smooth, amount)


def _noise(pictures: Tensor, others: Tensor, amount: Tensor) -> Tensor:
    return pictures + 0.1 * amount * torch.randn_like(pictures)


def _mosaic(pictures: Tensor, others: Tensor, amount: Tensor) -> Tensor:
    cells = F.interpolate(F.avg_pool2d(pictures, 4, ceil_mode=True), size=pictures.shape[2:], mode="nearest")
    return torch.lerp(pictures, cells, amount)


def _fade(pictures: Tensor, others: Tensor, amount: Tensor) -> Tensor:
    return torch.lerp(pictures, pictures.mean((2, 3), keepdim=True), 0.7 * amount)


def _ghost(pictures: Tensor, others: Tensor, amount: Tensor) -> Tensor:
    return torch.lerp(pictures, others, 0.5 * amount)


DAMAGES: Sequence[Callable[[Tensor, Tensor, Tensor], Tensor]] = (_blur, _noise, _mosaic, _fade, _ghost)


# -- a run that counts steps ------------------------------------------------------------------------------------------


class StepRun(Run):
    """A run that ends after a number of steps rather than minutes, so that it comes out alike on every machine."""

    def __init__(
        self, out: Path, name: str, model: nn.Module, optimiser: torch.optim.Optimizer, steps: int, resume: bool
    ) -> None:
        super().__init__(out, name, model, [optimiser], Budget(1), Team.join(), ema=0.98, resume=resume)
        self.steps = steps

    def _ticking(self) -> Iterator[None]:
        with tqdm(total=self.steps, initial=self.step, unit="step", desc=self.name) as self.bar:
            while self.step < self.steps:
                began = time.monotonic()
                yield
                self.seconds += time.monotonic() - began
                self.bar.update()

    def _set_rates(self) -> None:
        factor = min(1.0, (self.step + 1) / WARMUP) * (1 - self.step / self.steps)
        for optimiser, rates in zip(self.optimisers, self.base_rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor

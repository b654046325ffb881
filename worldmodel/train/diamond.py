"""Train DIAMOND's denoiser (families/diamond.py) from nothing on a recording, and play it where a world is judged.

As arXiv:2405.12399 and the code of its Atari agents have it (github.com/eloialonso/diamond, config/): sizes, noise
levels, EDM loss, AdamW, batches of 32, segments of two predictions, the second from a history that ends with the first.
Three things are this repository's: the learning rate falls in the last half of the time, weights are averaged, and no
segment reaches over an episode's begin or a change of scene, of which nothing could tell this network. Reward model and
agent are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from worldmodel.errors import CheckpointError, DatasetError
from worldmodel.families.diamond import (
    Attention,
    Denoiser,
    DiamondSpec,
    DiamondWorld,
    Downsample,
    ResBlock,
    from_bytes,
    preconditioning,
    to_levels,
)
from worldmodel.families.family import State
from worldmodel.train.clips import clips_of
from worldmodel.train.codec import psnr
from worldmodel.train.dataset import Arrays, Dataset, write_json
from worldmodel.train.pictures import save_strip
from worldmodel.train.playable import Frames, Held
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team

BATCH = 32  # segments per step
PREDICTED = 2  # pictures of a segment that are predicted; all but the first have own ones in their history
P_MEAN, P_STD, SIGMA = -0.4, 1.2, (0.002, 20.0)  # of log sigma in training, and the sigmas that it is cut off at
RATE, DECAY = 1e-4, 1e-2  # of AdamW; weight decay of convolutions and linear layers alone
SHOWN = (1, 2, 5, 10, 20)  # ticks on a sample strip; a picture costs seconds
PLAYERS = 4  # on it


def train_diamond(
    data: Path,
    out: Path,
    minutes: float,
    batch: int = BATCH,
    seed: int = 0,
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train until `minutes` are spent; writes OUT/diamond.json and OUT/denoiser.safetensors.

    changes: fields of the DiamondSpec other than published, for tests.
    """
    team = Team.join()
    torch.manual_seed(seed)
    dataset = Dataset(data)
    recorded = dataset.load()
    keys = KeyTable.of(dataset.info.actions, recorded.actions.astype(bool))
    info = dataset.info
    spec = DiamondSpec(len(keys.combinations), height=info.height, width=info.width, **(changes or {}))
    _write(out, spec, keys, team)
    segments = Segments.of(recorded, keys, spec.num_steps_conditioning + PREDICTED, team.device)
    world = fresh(spec).to(team.device)
    denoiser = world.denoiser
    run = Run(out, "denoiser", denoiser, [optimiser(denoiser)], Budget(minutes), team, resume=resume)
    # Two processes must not draw the same segments, and a resumed run not the same ones again.
    draw = torch.Generator(team.device).manual_seed(hash((seed, team.rank, run.step)) & 0x7FFFFFFF)
    return run.loop(
        lambda step: learn(denoiser, *segments.draw(batch, draw), draw),
        lambda step: preview(PlayedDiamond(world, keys), dataset, out / f"denoiser-{step:06d}.png"),
    )


def _write(out: Path, spec: DiamondSpec, keys: KeyTable, team: Team) -> None:
    """OUT/diamond.json; one that is there already must say the same."""
    about = json.loads(json.dumps({"spec": asdict(spec), **asdict(keys)}))
    path = out / "diamond.json"
    if team.leads:
        if path.exists() and json.loads(path.read_text()) != about:
            raise DatasetError(f"{path} is of another recording or other sizes: choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, about)
    team.wait_for_all()


def read_diamond(run: Path) -> tuple[DiamondSpec, KeyTable]:
    """What a run folder's diamond.json says."""
    path = run / "diamond.json"
    try:
        about = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: train DIAMOND there first") from error
    sizes: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in about["spec"].items()
    }  # fmt: skip
    return DiamondSpec(**sizes), KeyTable(tuple(about["actions"]), tuple(map(tuple, about["combinations"])))


# -- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyTable:
    """Keys held together as one of the actions that DIAMOND chooses among: a number for each combination of keys that
    a recording has, 0 for none, then the commonest first.
    """

    actions: tuple[str, ...]
    combinations: tuple[tuple[bool, ...], ...]

    @staticmethod
    def of(actions: Sequence[str], held: NDArray[np.bool_]) -> KeyTable:
        """held: bool [frames, actions], of a recording."""
        rows, counts = np.unique(held, axis=0, return_counts=True)
        common = [tuple(rows[i].tolist()) for i in np.argsort(-counts, kind="stable")]
        none = (False,) * len(actions)
        return KeyTable(tuple(actions), (none, *(row for row in common if row != none)))

    def numbers(self, held: NDArray[np.bool_]) -> NDArray[np.int64]:
        """int64 [...] of bool [..., actions]; what was never recorded is taken for the combination that differs in the
        fewest keys.
        """
        different = held[..., None, :] != np.array(self.combinations)
        return np.asarray(different.sum(-1).argmin(-1), np.int64)


# -- learning ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segments:
    """A recording in memory, and where a segment may begin.

    pictures: uint8 [frames, height, width, 3], wherever they fit. actions: int64 [frames], what led to each.
    starts: int64 [segments], the first frame of each; all of a segment is of one episode and one scene.
    """

    pictures: Tensor
    actions: Tensor
    starts: Tensor
    length: int
    device: torch.device

    @staticmethod
    def of(recorded: Arrays, keys: KeyTable, length: int, device: torch.device) -> Segments:
        last = length - 1
        whole = np.ones(max(len(recorded.frames) - last, 0), bool)
        for told in (recorded.episode, recorded.scene):
            whole &= told[last:] == told[: len(whole)]
        if not whole.any():
            raise DatasetError(f"no {length} frames in a row within one scene: record longer episodes")
        numbers = torch.from_numpy(keys.numbers(recorded.actions.astype(bool)))
        starts = torch.from_numpy(np.flatnonzero(whole))
        return Segments(torch.from_numpy(recorded.frames), numbers, starts, length, device)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures float32 [batch, length, 3, height, width] in [−1, 1] and actions int64 [batch, length]."""
        chosen = torch.randint(len(self.starts), (batch,), generator=generator, device=generator.device).cpu()
        at = self.starts[chosen, None] + torch.arange(self.length)
        return from_bytes(self.pictures[at].to(self.device)), self.actions[at].to(self.device)


def fresh(spec: DiamondSpec) -> DiamondWorld:
    """A world with weights to begin from: blocks and the output add nothing, noise levels have random frequencies."""
    world = DiamondWorld(spec)
    inner = world.denoiser.inner_model
    nn.init.normal_(inner.noise_emb.weight)
    nn.init.zeros_(inner.conv_out.weight)
    for part in inner.modules():
        if isinstance(part, ResBlock):
            nn.init.zeros_(part.conv2.weight)
        elif isinstance(part, Attention):
            for weight in part.out_proj.parameters():
                nn.init.zeros_(weight)
        elif isinstance(part, Downsample):
            nn.init.orthogonal_(part.conv.weight)
    return as_fast(world)


def as_fast(world: DiamondWorld) -> DiamondWorld:
    """Channels last in memory: convolutions on CPUs are faster so."""
    return world.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def optimiser(denoiser: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases, norms and the embedding of actions do not decay."""
    decaying = [part.weight for part in denoiser.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    known = {id(weight) for weight in decaying}
    others = [weight for weight in denoiser.parameters() if id(weight) not in known]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE)


def learn(denoiser: Denoiser, pictures: Tensor, actions: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """Leave behind the gradients of a batch of segments, see `Segments.draw`; returns the mean loss.

    What was predicted takes the true picture's place in the history of the next prediction.
    """
    spec = denoiser.spec
    past, count = spec.num_steps_conditioning, pictures.shape[1]
    history = pictures[:, :past]
    losses = []
    for at in range(past, count):
        target = pictures[:, at]
        loss, clean = denoising_loss(denoiser, history, actions[:, at + 1 - past : at + 1], target, draw)
        (loss / (count - past)).backward()
        losses.append(loss.detach())
        history = torch.cat([history[:, 1:], to_levels(clean.detach())[:, None]], 1)
    return {"loss": torch.stack(losses).mean()}


def denoising_loss(
    denoiser: Denoiser, history: Tensor, actions: Tensor, target: Tensor, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """EDM's loss of one prediction, about 1 before anything is learned, and the prediction.

    history: [batch, past, channels, height, width]. actions: int64 [batch, past], the last one now taken.
    target: [batch, channels, height, width].
    """
    spec, (batch, channels) = denoiser.spec, target.shape[:2]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=target.device)

    sigma = (P_MEAN + P_STD * normal(batch, 1, 1, 1)).exp().clamp(*SIGMA)
    noisy = target + sigma * normal(*target.shape) + spec.sigma_offset_noise * normal(batch, channels, 1, 1)
    level = preconditioning(spec, sigma)
    with torch.autocast(target.device.type, torch.bfloat16):
        output = denoiser.inner_model(
            noisy * level.c_in, level.total.flatten().log() / 4, history / spec.sigma_data, actions
        )
    clean = level.c_skip * noisy + level.c_out * output.float()
    return ((clean - target) / level.c_out).square().mean(), clean


def preview(world: PlayedDiamond, dataset: Dataset, path: Path) -> dict[str, float]:
    """Play recorded keys; write a strip, real above made, and return PSNR of tick 1 and of repeating the frame."""
    now = world.context
    clips = clips_of(dataset, dataset.episodes, now + SHOWN[-1], PLAYERS, np.random.default_rng(7))
    frames, held = np.stack([clip.frames for clip in clips]), np.stack([clip.actions for clip in clips])
    game = world.begin(frames[:, :now], held[:, :now], [clip.prompt for clip in clips], seed=7)
    made = np.stack([game.tick(held[:, now + tick]) for tick in range(SHOWN[-1])], 1)
    real = frames[:, now:]
    save_strip(path, [[part[i, t - 1] for t in SHOWN] for i in range(len(clips)) for part in (real, made)])
    first, shown, before = (torch.from_numpy(part) for part in (real[:, 0], made[:, 0], frames[:, now - 1]))
    return {"next_psnr": float(psnr(first, shown)), "copy_psnr": float(psnr(first, before))}


# -- playing ----------------------------------------------------------------------------------------------------------


class PlayedDiamond:
    """A trained denoiser as evaluation plays a world: a `Playable` of playable.py.

    It has no prompts, and no codec: pictures are what it works on. context: frames to be given at a beginning, of which
    it looks at the last ones; another world's where both are to begin at the same moments.
    """

    prompted = False

    def __init__(self, world: DiamondWorld, keys: KeyTable, context: int | None = None) -> None:
        self.world, self.keys = world, keys
        self.actions = keys.actions
        self.context = context or world.spec.num_steps_conditioning
        self.device = next(world.parameters()).device

    @staticmethod
    def load(run: Path, context: int | None = None) -> PlayedDiamond:
        """Of a run folder of `train_diamond`, on the GPU if there is one."""
        spec, keys = read_diamond(run)
        world = DiamondWorld(spec)
        load_weights(world.denoiser, run / "denoiser.safetensors")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return PlayedDiamond(as_fast(world).to(device).requires_grad_(False).eval(), keys, context)

    def begin(
        self, frames: NDArray[np.uint8], actions: NDArray[np.bool_], prompts: Sequence[str], seed: int
    ) -> DiamondGame:
        """Go on after the last of `frames`, see `Playable`."""
        past = self.world.spec.num_steps_conditioning
        state = self.world.start(torch.from_numpy(frames[:, -past:]).to(self.device))
        led = torch.from_numpy(self.keys.numbers(actions)).to(self.device)
        state["actions"] = torch.cat([state["actions"], led], 1)[:, led.shape[1] :]
        return DiamondGame(self, state, torch.Generator(self.device).manual_seed(seed))

    def through_codec(self, frames: Frames) -> Frames:
        """There is none."""
        return frames


@dataclass
class DiamondGame:
    """A `PlayedDiamond` being played."""

    playable: PlayedDiamond
    state: State
    generator: torch.Generator

    @torch.no_grad()
    def tick(self, held: Held) -> Frames:
        """See `Game`."""
        world, device = self.playable.world, self.playable.device
        noise = torch.randn((len(held), *world.about.noise_shape), generator=self.generator, device=device)
        number = torch.from_numpy(self.playable.keys.numbers(held)).to(device)
        action = nn.functional.one_hot(number, world.spec.num_actions)
        with torch.autocast(device.type, torch.bfloat16):
            frame, self.state = world(self.state, action, torch.empty(0), noise)
        return frame.cpu().numpy()

    def say(self, prompts: Sequence[str]) -> None:
        """It has no prompts."""

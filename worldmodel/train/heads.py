"""Train the heads that tell reward and end (`worldloop train heads`), on recorded latents; the world stays as it is.

At play the heads see generated latents, which are never exact: half of what they learn from is noisy, up to as much as
the codec's decoder has learned to bear and beyond. Ends are rare, so half of the frames that ends are learned from are
ends; from which logit on one is told is found afterwards on episodes left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.errors import DatasetError
from worldmodel.heads import NEVER
from worldmodel.spec import HeadsSpec, WorldSpec
from worldmodel.tick import World
from worldmodel.train.dataset import Dataset
from worldmodel.train.latents import LatentSet
from worldmodel.train.optimisers import optimisers
from worldmodel.train.preview import roll_out
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.team import Team
from worldmodel.train.world import prepare

HELD_OUT = 0.1  # share of the episodes, at least one
NOISE = 0.3  # most of the noise on latents whose channels have mean square 1
ENDS = 0.5  # share of the frames that ends are learned from which are ends
PLAYED = 16  # roll-outs of the world that the heads are tried on
PLAYED_SECONDS = 3  # of each, less where no episode is that long
BATCH = 256


def with_heads(spec: WorldSpec) -> WorldSpec:
    """The spec of a world with heads of the usual size."""
    return replace(spec, heads=HeadsSpec(min(HeadsSpec.frames, spec.window + 1)))


def train_heads(
    spec: WorldSpec, data: Path, out: Path, minutes: float, batch: int = BATCH, seed: int = 0, resume: bool = False
) -> dict[str, float]:
    """Train until `minutes` are spent; needs OUT/codec.safetensors, writes OUT/heads.safetensors.

    Returns step, seconds, and of episodes left out: `reward_r`, how the told reward goes with the real one tick by tick
    (correlation); `reward_r_second`, the same for sums over a second, which matter to a policy; `ends_found` and
    `ends_true`, shares of the ends that are told and of the told ones that are real. With OUT/world.safetensors also
    `reward_r_played`: of sums over a second in free play under recorded keys.
    """
    team = Team.join()
    torch.manual_seed(seed + 1000 * team.rank)
    frames = Frames.of(with_heads(spec), data, out, team)
    code = frames.world.codec.code
    run = Run(out, "heads", frames.heads, optimisers(frames.heads), Budget(minutes), team, resume=resume, code=code)
    draw = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, run.step)) & 0x7FFFFFFF)

    def step(_: int) -> dict[str, Tensor]:
        losses = frames.losses(batch, draw)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    figures = run.loop(step, lambda _: frames.figures())
    if team.leads:
        raw = {name: tensor.detach().clone() for name, tensor in frames.heads.state_dict().items()}
        frames.heads.load_state_dict(run.average)
        with torch.no_grad():
            frames.heads.threshold.copy_(frames.best_threshold())
            figures |= frames.figures()
            if (out / "world.safetensors").exists():
                load_weights(frames.world.generator, out / "world.safetensors", code=code)
                figures |= frames.played()
        threshold = {"threshold": frames.heads.threshold.detach().clone()}
        run.average |= threshold
        frames.heads.load_state_dict(raw | threshold)
        run.save()
    return figures


class Frames:
    """A recording's frames with a past, as the heads see them; and the world whose heads they are.

    reward: float32 [frames]. ends: bool [frames]. train, held_out: numbers of frames that have a past.
    """

    def __init__(self, world: World, latents: LatentSet, reward: Tensor, ends: Tensor) -> None:
        assert world.heads is not None, "made by with_heads"
        self.world, self.heads, self.latents, self.reward, self.ends = world, world.heads, latents, reward, ends
        frame = torch.arange(len(reward), device=reward.device)
        past = frame - latents.first >= self.heads.frames - 1
        episodes = latents.episode.unique()
        left_out = episodes[-max(1, round(HELD_OUT * len(episodes))) :]
        held_out = torch.isin(latents.episode, left_out)
        self.train, self.held_out = frame[past & ~held_out], frame[past & held_out]
        if not len(self.train) or not len(self.held_out):
            raise DatasetError("heads need at least two recorded episodes: record more frames")
        self.train_ends = self.train[ends[self.train]]

    @staticmethod
    def of(spec: WorldSpec, data: Path, out: Path, team: Team) -> Frames:
        reward, ends = (torch.from_numpy(column).to(team.device) for column in Dataset(data).outcomes())
        latents, world = prepare(spec, data, out, team)
        frames = Frames(world, latents, reward, ends)
        frames.heads.mean.copy_(reward[frames.train].mean())
        frames.heads.spread.copy_(reward[frames.train].std().clamp(min=1e-3))
        return frames

    def seen(self, frame: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads see of these frames: latents [batch, frames, …] and actions [batch, history, action_dim]."""
        past = frame.unsqueeze(1) + torch.arange(1 - self.heads.frames, 1, device=frame.device)
        return (
            self.latents.latents[side.unsqueeze(1), past].float(),
            self.latents.history(side, frame, self.heads.history),
        )

    def losses(self, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Squared error of rewards, in their spread; cross-entropy of ends, where any are recorded."""
        frame = self._some(self.train, batch, draw)
        reward, end = self._noisily(frame, draw)
        target = self.reward[frame]
        losses = {"reward_loss": ((reward - target) / self.heads.spread).square().mean()}
        if len(self.train_ends):
            at_end = self._some(self.train_ends, max(1, round(batch * ENDS)), draw)
            _, true_end = self._noisily(at_end, draw)
            weight = (~self.ends[frame]).float() * (1 - ENDS) / max(1, batch)
            other = (F.binary_cross_entropy_with_logits(end, torch.zeros_like(end), reduction="none") * weight).sum()
            found = F.binary_cross_entropy_with_logits(true_end, torch.ones_like(true_end))
            losses["end_loss"] = other + ENDS * found
        return losses

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Of the episodes left out, see `train_heads`."""
        told, logit = self._told(self.held_out)
        real, ends = self.reward[self.held_out], self.ends[self.held_out]
        episode = self.latents.episode[self.held_out]
        second = max(1, round(self.world.spec.tick_hz))
        parts = [torch.stack([told[episode == one], real[episode == one]]) for one in episode.unique()]
        long = [part.unfold(1, second, second).sum(2) for part in parts if part.shape[1] >= second]
        sums = torch.cat(long or parts, 1)
        found = {"reward_r": correlation(told, real), "reward_r_second": correlation(*sums)}
        if ends.any():
            says = logit > self.heads.threshold
            found["ends_found"] = float(says[ends].float().mean())
            found["ends_true"] = float(ends[says].float().mean()) if says.any() else 0.0
        return found

    @torch.no_grad()
    def best_threshold(self) -> Tensor:
        """The logit that tells ends best (F1): on the episodes left out if an end is among them, else on all."""
        frame = self.held_out if self.ends[self.held_out].any() else torch.cat([self.train, self.held_out])
        ends = self.ends[frame]
        if not ends.any():
            return torch.tensor(NEVER)
        logit, order = self._told(frame)[1].sort(descending=True)
        right = ends[order].cumsum(0)
        f1 = 2 * right / (torch.arange(1, len(logit) + 1, device=logit.device) + ends.sum())
        # Of equally good ones the middle: an end that was clear here may be a little less so in generated frames.
        best = (f1 == f1.max()).nonzero().squeeze(1)
        last = int(best[-1])
        below = logit[last + 1] if last + 1 < len(logit) else logit[last] - 1
        return (logit[last] + below) / 2

    @torch.no_grad()
    def played(self) -> dict[str, float]:
        """Let the world go on from frames of the episodes left out: does what it earns go with what was earned?

        `reward_r_played`, or nothing where these episodes are too short for it.
        """
        spec, draw = self.world.spec, torch.Generator(device=self.reward.device).manual_seed(5)
        second = max(1, round(spec.tick_hz))
        begin = max(spec.window + 1, self.heads.frames)
        longest = int(self.latents.episode[self.held_out].unique(return_counts=True)[1].max())
        ticks = min(PLAYED_SECONDS, (longest - begin) // second) * second
        if ticks <= 0:
            return {}
        starts = self.latents.starts(begin + ticks)
        starts = starts[torch.isin(starts, self.held_out)]
        chosen = starts[torch.linspace(0, len(starts) - 1, PLAYED, device=starts.device).long()]
        clip = self.latents.clips(spec, chosen, 1 + begin + ticks, draw).clip
        with torch.autocast(self.reward.device.type, torch.bfloat16):
            made = roll_out(self.world, clip, begin, ticks, draw)
        shown = torch.cat([clip.clean[:, : begin + 1], made.float()], 1)
        told = []
        for tick in range(ticks):
            at = begin + 1 + tick
            told.append(self.heads(shown[:, at + 1 - self.heads.frames : at + 1], clip.actions[:, at])[0])
        real = self.reward[chosen.unsqueeze(1) + begin + torch.arange(ticks, device=chosen.device)]
        both = torch.stack([torch.stack(told, 1), real]).unfold(2, second, second).sum(3)
        return {"reward_r_played": correlation(*both.flatten(1))}

    def _some(self, among: Tensor, count: int, draw: torch.Generator) -> Tensor:
        return among[torch.randint(len(among), (count,), device=among.device, generator=draw)]

    def _noisily(self, frame: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the heads say of these frames, on any side, half of them noisy."""
        sides = len(self.latents.latents)
        seen, told = self.seen(frame, torch.randint(sides, frame.shape, device=frame.device, generator=draw))
        amount, chosen = torch.rand(2, len(frame), 1, 1, 1, 1, device=frame.device, generator=draw)
        noisy = seen + NOISE * amount * (chosen < 0.5) * torch.randn_like(seen)
        outcome: tuple[Tensor, Tensor] = self.heads(noisy, told)
        return outcome

    def _told(self, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and end's logit of each of these frames, as recorded."""
        parts = [self.heads(*self.seen(part, torch.zeros_like(part))) for part in frame.split(1024)]
        rewards, ends = zip(*parts, strict=True)
        return torch.cat(rewards), torch.cat(ends)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, 0 where either does not change."""
    found = np.corrcoef(a.double().cpu().numpy(), b.double().cpu().numpy())[0, 1] if len(a) > 1 else 0.0
    return float(np.nan_to_num(found))

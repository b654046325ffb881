"""Real drives against generated ones: a rival learns to tell them apart, the world learns to be taken for real.

As in autoregressive adversarial post-training (AAPT, arXiv:2506.09350), on streams that go on from step to step
(LongLive, arXiv:2509.22622), hundreds of ticks from any recorded frame. A recording says what follows a history that it
has; only a rival can say what is wrong with a road that has been fading for ten seconds. Real and generated drives have
one driver, who sees the picture alone, so that what differs is the world.

The rival sees three moments, the prompt and the keys; its loss is relativistic (arXiv:1807.00734), its slope at real
and generated frames kept small by the difference that a little noise makes (as in APT, arXiv:2501.08316).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.codec.small import to_picture
from worldmodel.condition.camera_motion import controls
from worldmodel.errors import DatasetError
from worldmodel.spec import WorldSpec
from worldmodel.tick import State, World, next_latent, recache
from worldmodel.train.dataset import Dataset
from worldmodel.train.latents import LatentSet
from worldmodel.train.pixel_player import PixelPlayer
from worldmodel.train.preview import begin_play

MOMENTS = (0, 1, 6)  # ticks before now that the rival sees
STREAMS, PLAYED = 24, 8  # of a process: in all, and at a step
UNJUDGED, JUDGED = 4, 2  # ticks of a step: the last ones are judged, and carry gradient
LONGEST = 500  # ticks that a stream may last
SCENE = 120  # ticks between two prompts, on average
SETTLED = 10  # ticks after a change of scene in which nothing is judged
ALONE = 100  # steps in which the rival learns and the world does not
SHARE, MOST = 0.5, 0.5  # of the world's gradient, relative to that of its lessons; and of its loss at most
RIVAL_RATE = 3e-4
NUDGE, FLATNESS = 0.1, 50.0  # noise that must make little difference to the rival, and the weight of that difference


@dataclass(frozen=True)
class Moments:
    """What the rival judges. latents: [batch, MOMENTS, channels, rows, columns]. prompt: [batch, tokens, dim].

    keys: [batch, history, action_dim], what led to now. counts: [batch], 0 where the scene has just changed.
    """

    latents: Tensor
    prompt: Tensor
    keys: Tensor
    counts: Tensor


class Rival(nn.Module):
    """Judges places and the whole of what it sees: [batch, places + 1], the more the likelier real."""

    def __init__(self, spec: WorldSpec, width: int = 64, deep: int = 128) -> None:
        super().__init__()
        channels = spec.latent_shape[0]
        self.stem = nn.Conv2d((2 * len(MOMENTS) - 1) * channels, width, 3, padding=1)
        self.near = nn.ModuleList(_Residual(width) for _ in range(2))
        self.down = nn.Conv2d(width, deep, 4, stride=2, padding=1)
        self.far = nn.ModuleList(_Residual(deep) for _ in range(3))
        self.places = nn.Conv2d(deep, 1, 1)
        self.whole = nn.Linear(deep, 1)
        self.prompt = _mlp(spec.prompt_tokens * spec.prompt_dim, deep)
        self.keys = _mlp(spec.generator.action_history * spec.controls, deep)

    def forward(self, latents: Tensor, prompt: Tensor, keys: Tensor) -> Tensor:
        changes = [4 * (latents[:, 0] - latents[:, i]) for i in range(1, latents.shape[1])]
        x = self.stem(torch.cat([latents.flatten(1, 2), *changes], 1))
        for block in self.near:
            x = block(x)
        x = self.down(F.silu(x))
        for block in self.far:
            x = block(x)
        x = F.silu(x)
        whole = x.mean((2, 3))
        # What it is told counts only together with what it sees: keys alone must not tell the two drives apart.
        told = self.prompt(prompt.flatten(1)) + self.keys(keys.flatten(1))
        fits = self.whole(whole) + (whole * told).mean(1, keepdim=True)
        return torch.cat([self.places(x).flatten(1), fits], 1).float()


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(F.silu(self.first(F.silu(x))))
        return x + added


def _mlp(size_in: int, size_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size_in, size_out), nn.SiLU(), nn.Linear(size_out, size_out))


class Streams:
    """The world, played many times at once by drivers that see its frames; they go on from call to call."""

    def __init__(self, world: World, driven: LatentSet, colours: list[tuple[list[int], list[int]]], seed: int) -> None:
        """colours: of road and grass in each of the recording's scenes."""
        self._world, self._driven, self._colours = world, driven, colours
        self._rng = np.random.default_rng(seed)
        self._begin = max(max(MOMENTS), world.spec.window + 1)
        self._starts = driven.starts(1 + self._begin)
        self._left = np.zeros(STREAMS, int)  # ticks that each stream has to live
        self._since = np.zeros(STREAMS, int)  # ticks since its scene changed
        self._players: list[PixelPlayer] = [self._player(0)] * STREAMS
        self._frames = np.zeros((STREAMS, world.spec.height, world.spec.width, 3), np.uint8)
        self._state: State = {}
        self._prompt = torch.empty(0)
        self._recent = torch.empty(0)  # [streams, max(MOMENTS) + 1, …], the newest last

    def play(self, draw: torch.Generator) -> list[Moments]:
        """Play some of the streams on. What is judged of them carries gradient."""
        chosen = self._rng.permutation(STREAMS)[:PLAYED] if self._state else np.arange(STREAMS)
        over = chosen[self._left[chosen] <= 0]
        if len(over):
            self._begin_anew(over, draw)
        chosen = chosen[:PLAYED]
        at = torch.from_numpy(chosen)
        state = {name: value[at] for name, value in self._state.items()}
        prompt, recent = self._prompt[at], self._recent[at]
        judged: list[Moments] = []
        for tick in range(UNJUDGED + JUDGED):
            with torch.no_grad():
                state, prompt = self._change_scenes(chosen, state, prompt)
            keys = np.stack([self._players[i](self._frames[i]) for i in chosen])
            with torch.set_grad_enabled(tick >= UNJUDGED):
                latent, state = self._tick(state, torch.from_numpy(keys).to(at.device).float(), prompt, draw)
            recent = torch.cat([recent[:, 1:], latent.unsqueeze(1)], 1)
            with torch.no_grad():
                self._frames[chosen] = to_picture(self._world.codec.decode(latent)).cpu().numpy()
            self._since[chosen] += 1
            if tick >= UNJUDGED:
                counts = torch.from_numpy(self._since[chosen] > SETTLED).to(recent)
                judged.append(Moments(recent[:, [-1 - ago for ago in MOMENTS]], prompt, self._keys(state), counts))
        self._left[chosen] -= UNJUDGED + JUDGED
        for name, value in state.items():
            self._state[name][at] = value.detach()
        self._prompt[at], self._recent[at] = prompt, recent.detach()
        return judged

    def real(self, count: int, draw: torch.Generator) -> Moments:
        """As many moments of the recording."""
        driven, device = self._driven, self._driven.latents.device
        at = torch.randint(len(driven.scene), (8 * count,), device=device, generator=draw)
        new = driven.scene_first[at] > driven.first[at]
        known = at - torch.where(new, driven.scene_first[at] + SETTLED, driven.first[at] + max(MOMENTS)) >= 0
        at = at[known][:count]
        side = torch.randint(driven.latents.shape[0], at.shape, device=device, generator=draw)
        which = torch.randint(driven.captions.shape[1], at.shape, device=device, generator=draw)
        moments = torch.stack([driven.latents[side, at - ago].float() for ago in MOMENTS], 1)
        keys = driven.history(side, at, self._world.spec.generator.action_history)
        prompt = driven.prompts[driven.captions[driven.scene[at], which]]
        return Moments(moments, prompt, keys, torch.ones(len(at), device=device))

    def _keys(self, state: State) -> Tensor:
        """What led to the newest frame, [batch, history, action_dim]."""
        return state["actions"][:, -self._world.spec.generator.action_history :]

    def _tick(self, state: State, action: Tensor, prompt: Tensor, draw: torch.Generator) -> tuple[Tensor, State]:
        spec = self._world.spec
        noise = torch.randn(len(action), spec.schedule.noises, *spec.latent_shape, device=action.device, generator=draw)
        latent, state = next_latent(self._world, state, controls(spec, action), prompt, noise)
        return latent.float(), state

    @torch.no_grad()
    def _begin_anew(self, which: np.ndarray, draw: torch.Generator) -> None:
        """Let these streams begin from recorded frames."""
        start = self._starts[torch.randint(len(self._starts), (len(which),), device=draw.device, generator=draw)]
        drawn = self._driven.clips(self._world.spec, start, 1 + self._begin, draw)
        state = begin_play(self._world, drawn.clip, self._begin, self._world.spec.schedule)
        prompt, recent = drawn.clip.prompt[:, -1], drawn.clip.clean[:, -1 - max(MOMENTS) :]
        if self._state:
            at = torch.from_numpy(which)
            for name, value in state.items():
                self._state[name][at] = value
            self._prompt[at], self._recent[at] = prompt, recent
        else:
            self._state, self._prompt, self._recent = state, prompt.clone(), recent.clone()
        self._frames[which] = to_picture(self._world.codec.decode(recent[:, -1])).cpu().numpy()
        self._left[which] = self._rng.integers(1, LONGEST, len(which))
        self._since[which] = SETTLED
        for i, scene in zip(which, drawn.scene[:, -1].tolist(), strict=True):
            self._players[i] = self._player(scene)

    def _change_scenes(self, chosen: np.ndarray, state: State, prompt: Tensor) -> tuple[State, Tensor]:
        """Tell some of the streams another prompt."""
        changed = self._rng.random(len(chosen)) < 1 / SCENE
        if not changed.any():
            return state, prompt
        prompt = prompt.clone()
        for i in np.flatnonzero(changed):
            scene = int(self._rng.integers(len(self._colours)))
            caption = int(self._rng.integers(self._driven.captions.shape[1]))
            prompt[i] = self._driven.prompts[self._driven.captions[scene, caption]]
            self._players[chosen[i]].repainted(*_colours(self._colours[scene]))
            self._since[chosen[i]] = 0
        told = recache(self._world, state, prompt)
        new = torch.from_numpy(changed).to(prompt.device)
        return {k: torch.where(new.view(-1, *[1] * (v.dim() - 1)), told[k], v) for k, v in state.items()}, prompt

    def _player(self, scene: int) -> PixelPlayer:
        return PixelPlayer(*_colours(self._colours[scene]), np.random.default_rng(self._rng.integers(2**31)))


class Contest:
    """The world against its rival, step by step."""

    def __init__(self, world: World, driven: LatentSet, data: Path, seed: int) -> None:
        if world.spec.environment != "car_racing":
            raise DatasetError(f"{data}: only racer has a driver that sees pixels alone; leave --driven out")
        dataset = Dataset(data)
        if dataset.info.options.get("driver") != "pixels":
            raise DatasetError(f"{data}: driven by one who sees more than pixels; record it with --driver pixels")
        scenes = [facts for shard in range(len(dataset.shards)) for facts in dataset.scenes(shard)]
        self._world = world
        self.rival = Rival(world.spec).to(driven.latents.device)
        self.optimiser = torch.optim.Adam(self.rival.parameters(), RIVAL_RATE, (0.0, 0.99))
        self._streams = Streams(world, driven, [(facts["road"], facts["grass"]) for facts in scenes], seed)

    def step(self, number: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Leave gradients in the rival, and add to those that lessons left in the world; returns figures to be logged.

        The rival's slope grows tenfold while it learns. At a fixed weight it would soon be all that the world learns
        from, and nothing keeps the picture then.
        """
        made = self._streams.play(draw)
        shown = torch.cat([moments.latents for moments in made])
        prompt, keys, counts = (torch.cat([getattr(m, part) for m in made]) for part in ("prompt", "keys", "counts"))
        real = self._streams.real(len(shown), draw)
        fake = Moments(shown.detach().requires_grad_(), prompt, keys, counts)
        says_real, says_fake = self._judge(real), self._judge(fake)
        weight = counts[:, None] / counts.sum().clamp(min=1) / says_fake.shape[1]
        margin = says_real - says_fake
        away = torch.autograd.grad((F.softplus(margin) * weight).sum(), fake.latents, retain_graph=True)[0]
        weight_now = self._add(away, shown) if number >= ALONE else torch.zeros(())
        slope = self._slope(real, says_real) + self._slope(fake, says_fake)
        lost = (F.softplus(-margin) * weight).sum() + FLATNESS * slope
        learning = list(self.rival.parameters())
        for parameter, gradient in zip(learning, torch.autograd.grad(lost, learning), strict=True):
            parameter.grad = gradient
        told_apart = ((margin > 0).float() * weight).sum()
        return {"rival": lost.detach(), "told_apart": told_apart, "slope": slope.detach(), "weight": weight_now}

    def _add(self, away: Tensor, shown: Tensor) -> Tensor:
        """Add the gradient of what was shown to the world's; returns its weight."""
        learning = [p for p in self._world.generator.parameters() if p.grad is not None]
        before = [p.grad for p in learning if p.grad is not None]
        gradients = torch.autograd.grad((away * shown).sum(), learning)
        lessons, own = (torch.stack(torch._foreach_norm(g)).norm() for g in (before, gradients))
        weight = (SHARE * lessons / own.clamp(min=1e-12)).clamp(max=MOST)
        for sum_, gradient in zip(before, gradients, strict=True):
            sum_ += weight * gradient
        return weight

    def _slope(self, moments: Moments, said: Tensor) -> Tensor:
        """How much a little noise makes of what was said."""
        nudged = moments.latents.detach() + NUDGE * torch.randn_like(moments.latents)
        return (self.rival(nudged, moments.prompt, moments.keys) - said).square().mean()

    def _judge(self, moments: Moments) -> Tensor:
        says: Tensor = self.rival(moments.latents, moments.prompt, moments.keys)
        return says


def _colours(pair: tuple[list[int], list[int]]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    (r, g, b), (s, h, c) = pair
    return (r, g, b), (s, h, c)

"""Can a policy learn inside a world what it needs in the real game? PPO in the world alone, tried in CarRacing.

    python -m benchmarks.policy train world --world FILE --out DIR --ticks 60000      only frames that the world makes
    python -m benchmarks.policy train real --out DIR --ticks 60000                    the same in the environment
    python -m benchmarks.policy compare --out DIR                                      both in the environment; random

All of it can be killed and goes on where it was. FILE is a world with heads ('worldloop train heads'); every one of its
starts is used. The policy decides every fourth tick, from what it makes of two pictures: where the colour is that the
car stood on at first, and brightness. PPO as in arXiv:1707.06347, keys as independent coins. Needs the train extra.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli
from tqdm import tqdm

from runtime.env import WorldVectorEnv
from runtime.world import World
from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.intervals import mean_interval
from worldmodel.train.run import write_whole

PLAYERS = 8
HELD = 4  # ticks for which a decision lasts
EPISODE = 248  # ticks
LOOKED = 24  # side of what the policy sees, pixels
ALIKE = 40.0  # levels, summed over the colours, by which road may differ from road
DECISIONS = 32  # of each player between two updates
EPOCHS, PARTS = 4, 4  # times that each batch is learned from, and in how many parts
DISCOUNT, TRACE = 0.97, 0.9  # of rewards per decision; of advantages (GAE)
CLIP, ENTROPY, RATE = 0.2, 0.003, 1e-3
WORTH = 0.2  # rewards are scaled by this
TRIED = 300  # ticks of an episode of `compare`


class Game(Protocol):
    """Some players in a batch, as Gymnasium's vector environments with NEXT_STEP: who is over begins anew next step."""

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]: ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]: ...


class RealGames:
    """CarRacing by the adapter that recorded what the world learned from."""

    def __init__(self, players: int, size: int, split: str, max_ticks: int) -> None:
        self.cars = [CarRacing(size=size, split=split, recolour=False) for _ in range(players)]
        self.max_ticks, self.next_seed = max_ticks, 0
        self.ticks, self.over = np.zeros(players, int), np.zeros(players, bool)

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        self.next_seed = seed
        self.over[:] = False
        return np.stack([self._begin(player) for player in range(len(self.cars))]), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        frames, rewards, terminated = [], np.zeros(len(self.cars)), np.zeros(len(self.cars), bool)
        for player, car in enumerate(self.cars):
            if self.over[player]:
                frames.append(self._begin(player))
                continue
            frames.append(car.step(actions[player].astype(bool))[0])
            self.ticks[player] += 1
            rewards[player], terminated[player] = car.outcome()
        truncated = self.ticks >= self.max_ticks
        self.over = terminated | truncated
        return np.stack(frames), rewards, terminated, truncated, {}

    def _begin(self, player: int) -> np.ndarray:
        self.ticks[player] = 0
        self.next_seed += 1
        return self.cars[player].reset(self.next_seed)


class Eyes:
    """Pictures as the policy sees them: float32 [players, 4, LOOKED, LOOKED], now and at the decision before."""

    def __init__(self, players: int) -> None:
        self.road = np.zeros((players, 3))
        self.seen = np.zeros((players, 4, LOOKED, LOOKED), np.float32)

    def look(self, frames: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """frames: uint8 [players, height, width, 3]. begun: bool [players], whose episode has just begun."""
        now = np.zeros((len(frames), 2, LOOKED, LOOKED), np.float32)
        for player, frame in enumerate(frames):
            height, width, _ = frame.shape
            if begun[player]:
                under = frame[int(0.62 * height) : int(0.67 * height) + 1, int(0.44 * width) : int(0.56 * width) + 1]
                self.road[player] = np.median(under.reshape(-1, 3), 0)
            like = np.exp(-np.abs(frame - self.road[player]).sum(-1) / ALIKE)
            for plane, wide in enumerate((like, frame.mean(-1) / 255)):
                now[player, plane] = cv2.resize(wide, (LOOKED, LOOKED), interpolation=cv2.INTER_AREA)
        now[:, 1] -= now[:, 1].mean((1, 2), keepdims=True)
        before = np.where(begun[:, None, None, None], now, self.seen[:, :2])
        self.seen = np.concatenate([now, before], 1)
        return self.seen


class Policy(nn.Module):
    """What is seen and what is pressed → the odds of each key, and what is still to be earned."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(4, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.think = nn.Sequential(nn.Linear(32 * (LOOKED // 4) ** 2 + actions, 128), nn.Tanh())
        self.press, self.worth = nn.Linear(128, actions), nn.Linear(128, 1)
        nn.init.orthogonal_(self.press.weight, 0.01)
        nn.init.constant_(self.press.bias, -0.5)  # a key is rather left alone

    def forward(self, seen: Tensor, pressed: Tensor) -> tuple[Bernoulli, Tensor]:
        thought = self.think(torch.cat([self.see(seen), pressed], 1))
        return Bernoulli(logits=self.press(thought)), self.worth(thought).squeeze(1)


class Practice:
    """Players at their games, decision by decision. earned: the returns of the episodes that are over."""

    def __init__(self, game: Game, players: int, actions: int, seed: int) -> None:
        self.game, self.eyes = game, Eyes(players)
        self.pressed = np.zeros((players, actions), np.float32)
        self.sum, self.earned = np.zeros(players), list[float]()
        frames, _ = game.reset(seed=seed)
        self.seen = self.eyes.look(frames, np.ones(players, bool))

    def decide(self, pressed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Hold these keys for a while: rewards, who is terminated, who is truncated, and what all saw at the end.

        A little longer where an episode ends with the last tick, so that its player is in the next one.
        """
        players = len(pressed)
        rewards, over, last = np.zeros(players), np.zeros(players, bool), np.empty(0)
        ends = {name: np.zeros(players, bool) for name in ("terminated", "truncated")}
        for tick in itertools.count(1):
            frames, reward, *ended, _ = self.game.step(np.where(over[:, None], 0, pressed).astype(np.int8))
            rewards += np.where(over, 0, reward)
            last = np.where(over[:, None, None, None], last, frames) if over.any() else frames
            for name, now in zip(ends, ended, strict=True):
                ends[name] |= now & ~over
            over |= ended[0] | ended[1]
            if tick >= HELD and not (ended[0] | ended[1]).any():
                break
        self.sum += rewards
        final = self.seen = self.eyes.look(last, np.zeros(players, bool))
        if over.any():
            self.earned += self.sum[over].tolist()
            self.sum[over] = 0
            self.seen = np.where(over[:, None, None, None], self.eyes.look(frames, over), final)
            self.eyes.seen = self.seen
        self.pressed = np.where(over[:, None], 0, pressed).astype(np.float32)
        return rewards, ends["terminated"], ends["truncated"], final


def train(name: str, make: Callable[[], Game], actions: int, out: Path, ticks: int, seed: int) -> None:
    """PPO until `ticks` are lived; OUT/NAME.pt is kept after every update and read again."""
    torch.manual_seed(seed)
    policy = Policy(actions)
    optimiser = torch.optim.Adam(policy.parameters(), lr=RATE, eps=1e-5)
    lived, spent, history = 0, 0.0, list[dict[str, float]]()
    kept = out / f"{name}.pt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        policy.load_state_dict(state["policy"]), optimiser.load_state_dict(state["optimiser"])
        lived, spent, history = state["lived"], state["spent"], json.loads(state["history"])
    practice: Practice | None = None
    bar = tqdm(total=ticks, initial=lived, unit="tick", desc=f"policy, {name}")
    while lived < ticks:
        begun = time.monotonic()
        practice = practice or Practice(make(), PLAYERS, actions, seed + lived)
        for group in optimiser.param_groups:
            group["lr"] = RATE * max(0.1, 1 - lived / ticks)
        batch = collect(policy, practice)
        learn(policy, optimiser, batch)
        lived += PLAYERS * DECISIONS * HELD
        spent += time.monotonic() - begun
        recent = practice.earned[-4 * PLAYERS :]
        history.append({"ticks": lived, "return": float(np.mean(recent)) if recent else float("nan")})
        bar.update(PLAYERS * DECISIONS * HELD)
        bar.set_postfix({"return": f"{history[-1]['return']:.1f}"})
        state = {"policy": policy.state_dict(), "optimiser": optimiser.state_dict(), "lived": lived, "spent": spent}
        state["history"] = json.dumps(history)
        write_whole(kept, lambda path, state=state: torch.save(state, path))  # type: ignore[misc]
    bar.close()


@torch.no_grad()
def collect(policy: Policy, practice: Practice) -> dict[str, Tensor]:
    """DECISIONS of every player, with advantages and returns; all [decisions · players, …]."""
    rows: dict[str, list[Tensor]] = {name: [] for name in ("seen", "before", "pressed", "odds", "worth", "gain", "on")}
    for _ in range(DECISIONS):
        seen, before = torch.from_numpy(practice.seen), torch.from_numpy(practice.pressed)
        chances, worth = policy(seen, before)
        pressed = chances.sample()
        rewards, terminated, truncated, final = practice.decide(pressed.numpy())
        gain = torch.from_numpy(WORTH * rewards).float()
        # What a cut-off episode would still have earned is earned with its last decision.
        later = policy(torch.from_numpy(final), pressed)[1]
        gain += DISCOUNT * later * torch.from_numpy(truncated & ~terminated).float()
        on = 1 - torch.from_numpy(terminated | truncated).float()
        odds = chances.log_prob(pressed).sum(1)
        for name, value in zip(rows, (seen, before, pressed, odds, worth, gain, on), strict=True):
            rows[name].append(value)
    following = policy(torch.from_numpy(practice.seen), torch.from_numpy(practice.pressed))[1]
    advantage, advantages = torch.zeros(PLAYERS), []
    for step in reversed(range(DECISIONS)):
        worth, on = rows["worth"][step], rows["on"][step]
        advantage = rows["gain"][step] + on * DISCOUNT * (following + TRACE * advantage) - worth
        advantages.append(advantage)
        following = worth
    batch = {name: torch.cat(values) for name, values in rows.items()}
    batch["advantage"] = torch.cat(advantages[::-1])
    batch["return"] = batch["advantage"] + batch["worth"]
    return batch


def learn(policy: Policy, optimiser: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """PPO's clipped updates on one batch."""
    for _ in range(EPOCHS):
        for part in torch.randperm(len(batch["odds"])).chunk(PARTS):
            chances, worth = policy(batch["seen"][part], batch["before"][part])
            ratio = (chances.log_prob(batch["pressed"][part]).sum(1) - batch["odds"][part]).exp()
            advantage = batch["advantage"][part]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            error = (worth - batch["return"][part]).square().mean()
            loss = 0.5 * error - gain - ENTROPY * chances.entropy().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimiser.step()


@torch.no_grad()
def returns(choose: Callable[[np.ndarray, np.ndarray], np.ndarray], episodes: int, size: int) -> np.ndarray:
    """What is earned in TRIED ticks of each of these held-out real episodes, the same for everybody: [episodes]."""
    earned: list[float] = []
    for first in range(0, episodes, PLAYERS):
        players = min(PLAYERS, episodes - first)
        practice = Practice(RealGames(players, size, "test", TRIED), players, len(CarRacing.actions), 10_000 + first)
        while len(practice.earned) < players:
            practice.decide(choose(practice.seen, practice.pressed))
        earned += practice.earned[:players]
    return np.array(earned)


def compare(out: Path, episodes: int, size: int) -> list[dict[str, object]]:
    """A row of the table for each policy; those of OUT that are there."""
    rng = np.random.default_rng(0)
    coins = (0.5,) * len(CarRacing.actions)
    rows: list[dict[str, object]] = []

    def row(name: str, lived: int, choose: Callable[[np.ndarray, np.ndarray], np.ndarray], told: float | None) -> None:
        earned = returns(choose, episodes, size)
        rows.append({"policy": name, "ticks": lived, "return": float(earned.mean()), "told": told})
        rows[-1] |= {"interval": mean_interval(earned), "episodes": earned.round(1).tolist()}

    row("nothing pressed", 0, lambda _, pressed: np.zeros_like(pressed), None)
    row("random keys", 0, lambda _, pressed: (rng.random(pressed.shape) < coins).astype(np.float32), None)
    for name in ("world", "real"):
        if not (out / f"{name}.pt").exists():
            continue
        state = torch.load(out / f"{name}.pt", weights_only=True)
        policy = Policy(len(CarRacing.actions))
        policy.load_state_dict(state["policy"])

        def choose(seen: np.ndarray, pressed: np.ndarray, policy: Policy = policy) -> np.ndarray:
            return policy(torch.from_numpy(seen), torch.from_numpy(pressed))[0].sample().numpy()

        torch.manual_seed(0)
        row(f"trained in the {name}", state["lived"], choose, json.loads(state["history"])[-1]["return"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("where", choices=("world", "real"))
    training.add_argument("--world", type=Path, help="a world file with heads")
    training.add_argument("--ticks", type=int, default=60_000, help="in all, resumed runs included")
    training.add_argument("--seed", type=int, default=0)
    comparing = commands.add_parser("compare")
    comparing.add_argument("--episodes", type=int, default=16)
    for command in (training, comparing):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--size", type=int, default=96, help="of real pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if arguments.command == "compare":
        rows = compare(arguments.out, arguments.episodes, arguments.size)
        (arguments.out / "policies.json").write_text(json.dumps(rows, indent=1) + "\n")
        for entry in rows:
            low, high = entry["interval"] or (float("nan"), float("nan"))  # type: ignore[misc]
            print(f"{entry['policy']:<22} {entry['ticks']:>7} ticks  {entry['return']:6.1f}  ({low:.1f} to {high:.1f})")
        return

    def make() -> Game:
        if arguments.where == "real":
            return RealGames(PLAYERS, arguments.size, "train", EPISODE)
        world = World.open(arguments.world)
        if "reward" not in world.manifest.state:
            parser.error(f"{arguments.world} tells no rewards: 'worldloop train heads', then export it again")
        starts = [start.name for start in world.manifest.starts]
        return WorldVectorEnv(world, PLAYERS, max_ticks=EPISODE, starts=starts)

    if arguments.where == "world" and arguments.world is None:
        parser.error("train world: which one? --world FILE")
    train(arguments.where, make, len(CarRacing.actions), arguments.out, arguments.ticks, arguments.seed)


if __name__ == "__main__":
    main()

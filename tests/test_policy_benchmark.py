"""The benchmark's PPO: it finds what pays, goes on where it was stopped, and mixes no episode with the next."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from benchmarks.policy import DECISIONS, HELD, PLAYERS, Policy, Practice, train

UPDATE = PLAYERS * DECISIONS * HELD  # ticks


class Paid:
    """A tick pays 1 while the first key is held; player 0's episodes end after `length` ticks, the others' never."""

    def __init__(self, length: int = 10**9) -> None:
        self.length, self.ticks, self.over = length, 0, False
        self.begun = 0

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        self.ticks, self.begun = 0, 1
        return self.look(), {}

    def look(self) -> np.ndarray:
        return np.full((PLAYERS, 24, 24, 3), 10 * self.begun % 250, np.uint8)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        reward, ended = actions[:, 0].astype(float), np.zeros(PLAYERS, bool)
        if self.over:
            assert not actions[0].any(), "who begins presses nothing"
            self.ticks, self.over, self.begun = 0, False, self.begun + 1
            reward[0] = 0
        else:
            self.ticks += 1
            ended[0] = self.over = self.ticks >= self.length
        return self.look(), reward, ended, np.zeros(PLAYERS, bool), {}


def test_what_pays_is_found_and_a_second_call_goes_on(tmp_path):
    train("paid", Paid, 2, tmp_path, 3 * UPDATE, seed=0)
    train("paid", Paid, 2, tmp_path, 6 * UPDATE, seed=0)
    state = torch.load(tmp_path / "paid.pt", weights_only=True)
    assert [entry["ticks"] for entry in json.loads(state["history"])] == [n * UPDATE for n in range(1, 7)]
    policy = Policy(2)
    policy.load_state_dict(state["policy"])
    practice = Practice(Paid(), PLAYERS, 2, seed=0)
    with torch.no_grad():
        chances = policy(torch.from_numpy(practice.seen), torch.zeros(PLAYERS, 2))[0].probs
    assert chances[0, 0] > 0.55 > 0.38, "from which it began"


@pytest.mark.parametrize("length", [HELD + 1, 2 * HELD, 2 * HELD + 1])
def test_an_episode_earns_its_own_rewards_wherever_it_ends(length):
    practice = Practice(Paid(length), PLAYERS, 2, seed=0)
    held = np.ones((PLAYERS, 2), np.float32)
    ends = np.stack([practice.decide(held)[1] for _ in range(8)])
    assert ends[:, 0].any() and not ends[:, 1:].any()
    assert practice.earned[0] == length


def test_a_restarted_player_sees_its_own_beginning():
    practice = Practice(Paid(HELD), PLAYERS, 2, seed=0)
    _, terminated, _, _ = practice.decide(np.ones((PLAYERS, 2), np.float32))
    assert terminated[0] and not practice.pressed[0].any() and practice.pressed[1].all()
    assert (practice.eyes.road[0] == 20).all() and (practice.eyes.road[1] == 10).all()

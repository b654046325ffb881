"""Reward and end of a tick, read from its latents: what makes a world a training ground for policies.

The heads hang on a trained world and change nothing in it: they see the newest clean latents of its state and the keys
that led there, as the state keeps them, and add two tensors to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldmodel.codec.small import Conv, Residual
from worldmodel.spec import HeadsSpec

State = dict[str, Tensor]
NEVER = 1e9  # threshold where no end was ever recorded
NARROW = 16  # channels per cell that the last layers see


class Heads(nn.Module):
    """Latents and keys to reward and end.

    mean, spread: of the recorded rewards. threshold: of the logit from which on an end is told.
    """

    mean: Tensor
    spread: Tensor
    threshold: Tensor

    def __init__(self, sizes: HeadsSpec, latent_shape: tuple[int, int, int], history: int, actions: int) -> None:
        super().__init__()
        channels, rows, columns = latent_shape
        self.frames, self.history, self.keys = sizes.frames, history, actions
        self.see = nn.Sequential(
            Conv(sizes.frames * channels, sizes.width),
            Residual(sizes.width),
            nn.MaxPool2d(2, ceil_mode=True),
            Residual(sizes.width),
            nn.Conv2d(sizes.width, NARROW, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        seen = NARROW * -(-rows // 2) * -(-columns // 2)
        self.tell = nn.Sequential(nn.Linear(seen + history * actions, 128), nn.SiLU(), nn.Linear(128, 2))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("spread", torch.ones(1))
        self.register_buffer("threshold", torch.full((1,), NEVER))

    def forward(self, latents: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward and the end's logit, [batch] each.

        latents: [batch, frames, channels, rows, columns], the newest last. actions: [batch, history, controls], of
        which they look at the keys.
        """
        if actions.shape[-1] > self.keys:
            actions = actions[..., : self.keys]
        told = torch.cat([self.see(latents.flatten(1, 2)), actions.flatten(1)], 1)
        reward, end = self.tell(told).float().unbind(1)
        return self.mean + self.spread * reward, end

    def outcome(self, state: State) -> State:
        """Of the state after a tick. reward: [batch] float32. terminated: [batch] uint8, 1 at the end."""
        reward, end = self(state["latents"][:, -self.frames :], state["actions"][:, -self.history :])
        return {"reward": reward, "terminated": (end > self.threshold).to(torch.uint8)}


def begun(batch: int, device: torch.device | None = None) -> State:
    """Reward and end before the first tick."""
    return {
        "reward": torch.zeros(batch, device=device),
        "terminated": torch.zeros(batch, dtype=torch.uint8, device=device),
    }

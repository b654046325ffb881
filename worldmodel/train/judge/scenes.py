"""Which scene is this? A linear classifier of what the eye describes, for environments with several named scenes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS, RATE = 300, 0.05
SHRINK = 1e-3  # of the weights: scenes that are easily told apart need no large ones


def learn_scenes(seen: Tensor, scene: Tensor, count: int) -> nn.Linear:
    """Logistic regression of descriptions float32 [n, features] on their scenes int64 [n], 0 … count - 1."""
    layer = nn.Linear(seen.shape[1], count)
    centre = seen.mean(0)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=SHRINK)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimiser.zero_grad()
            F.cross_entropy(layer(seen - centre), scene).backward()
            optimiser.step()
    with torch.no_grad():  # from now on of descriptions as they are
        layer.bias.sub_(layer.weight @ centre)
    return layer

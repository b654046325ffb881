"""The processes that train together: one, or as many as torchrun started. Gradients are averaged, numbers stay in
step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Team:
    """rank of size; device is where this member computes."""

    rank: int
    size: int
    device: torch.device

    @staticmethod
    def join() -> Team:
        """Take the place that torchrun assigned (environment variables RANK, WORLD_SIZE, LOCAL_RANK), or work alone."""
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")
        return Team(rank, size, device)

    @property
    def leads(self) -> bool:
        """Whether this member writes files and shows progress."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Go on when every member has come here."""
        if self.size > 1:
            dist.barrier()

    @torch.no_grad()
    def share(self, model: nn.Module) -> None:
        """Give everybody the leader's weights: averaged gradients lead nowhere from different beginnings."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """One all-reduce over all gradients as one flat vector."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, (flat / self.size).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agree(self, value: float) -> float:
        """The leader's value, on every member: for decisions that all must take alike, such as when to stop."""
        if self.size == 1:
            return value
        shared: Tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

"""One of the processes that test_train.py starts with torchrun: trains a little and writes down what came of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from worldmodel.train.run import Budget, Run
from worldmodel.train.team import Team


def main(out: Path) -> None:
    team = Team.join()
    torch.manual_seed(team.rank)
    model = nn.Linear(3, 2)
    begun = model.weight.detach().clone()
    run = Run(out, "tiny", model, [torch.optim.SGD(model.parameters(), 0.1)], Budget(0.005), team)

    def step(_: int) -> dict[str, Tensor]:
        loss = model(torch.randn(4, 3)).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    run.loop(step)
    torch.save({"begun": begun, "ended": model.weight.detach()}, out / f"{team.rank}.pt")
    team.wait_for_all()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads are not waited for


if __name__ == "__main__":
    main(Path(sys.argv[1]))

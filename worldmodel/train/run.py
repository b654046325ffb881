"""One training run: a folder, a time budget, checkpoints that survive a kill, progress that a person can look at.

OUT/spec.json             the world's description
OUT/NAME.safetensors      averaged weights (EMA): what is exported and what the next stage starts from
OUT/NAME.resume.pt        raw weights, optimiser, random generator, step and seconds: what --resume reads
OUT/events…               TensorBoard; OUT/NAME-STEP.png: sample strips
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from worldmodel.errors import CheckpointError
from worldmodel.train.stopped import Stopped
from worldmodel.train.team import Team

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SAVE_EVERY = 120.0  # seconds between checkpoints
CODE = "codec"  # the name in a file of weights under which it tells of `Codec.code`


@dataclass(frozen=True)
class Budget:
    """How long to train and how fast to learn. Training time of resumed runs counts, that of stopped ones does not."""

    minutes: float
    warmup: int = 100  # steps
    hold: float = 0.5  # share of the time at full rate, then a straight line down

    def rate(self, step: int, seconds: float) -> float:
        """The factor on all learning rates."""
        done = min(seconds / (60 * self.minutes), 1.0)
        return min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.01, (1 - done) / (1 - self.hold)))


class Run:
    """Drives `step(step_number) -> losses` until the budget is spent."""

    def __init__(
        self, out: Path, name: str, model: nn.Module, optimisers: list[torch.optim.Optimizer], budget: Budget, team:
        Team, ema: float = 0.999, resume: bool = False, beside: nn.Module | None = None, code: str = "",
    ) -> None:  # fmt: skip
        """beside: what is trained along with the model, such as a critic: kept for --resume, no part of the result.
        code: of the codec whose latents the model works on, kept in the file of its weights.
        """
        self.out, self.name, self.model, self.optimisers, self.budget, self.team = (
            out,
            name,
            model,
            optimisers,
            budget,
            team,
        )
        self.ema_decay = ema
        self.beside = beside or nn.ModuleDict()
        self.about = {CODE: code} if code else None
        team.share(model)
        team.share(self.beside)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in optimisers]
        out.mkdir(parents=True, exist_ok=True)
        if resume and self.resume_file.exists():
            self._load()

    @property
    def resume_file(self) -> Path:
        return self.out / f"{self.name}.resume.pt"

    @property
    def done(self) -> float:
        """The share of the time that is spent, 0…1."""
        return min(self.seconds / (60 * self.budget.minutes), 1.0)

    def loop(
        self,
        step: Callable[[int], dict[str, Tensor]],
        show: Callable[[int], dict[str, float]] | None = None,
        show_every: float = 600.0,
    ) -> dict[str, float]:
        """Train. `step` leaves gradients behind and returns what to log; `show` evaluates the averaged weights."""
        writer = self._writer()
        last: dict[str, float] = {}
        latest: dict[str, Tensor] = {}
        saved = shown = time.monotonic()
        for _ in self._ticking():
            self._set_rates()
            for optimiser in self.optimisers:
                optimiser.zero_grad(set_to_none=True)
            losses = step(self.step)
            parameters = [p for o in self.optimisers for g in o.param_groups for p in g["params"]]
            self.team.average_gradients(parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            self.step += 1
            self._update_average()
            latest |= losses
            if self.step % 20 == 0:
                last = {k: float(v) for k, v in latest.items()}
                self.history.append({"step": self.step, "seconds": round(self.seconds, 1), **last})
                if writer:
                    for k, v in last.items():
                        writer.add_scalar(f"{self.name}/{k}", v, self.step)
                    self.bar.set_postfix({k: f"{v:.4f}" for k, v in last.items()})
            now = time.monotonic()
            if self.team.leads and now - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
            if show and self.team.leads and now - shown > show_every:
                self._show(show)
                shown = time.monotonic()
        if self.team.leads:
            if show:
                last |= self._show(show)
            self.save()
        return {"step": self.step, "seconds": round(self.seconds, 1), **last}

    def save(self) -> None:
        """Write both files whole: a kill in the middle leaves the older ones."""
        write_whole(
            self.out / f"{self.name}.safetensors",
            lambda p: save_file({k: v.contiguous().cpu() for k, v in self.average.items()}, p, self.about),
        )
        state = {
            "model": self.model.state_dict(), "average": self.average, "beside": self.beside.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers], "step": self.step, "seconds": self.seconds,
            "random": torch.get_rng_state(), "history": json.dumps(self.history),
        }  # fmt: skip
        write_whole(self.resume_file, lambda p: torch.save(state, p))
        (self.out / f"{self.name}.json").write_text(json.dumps(self.history))

    def _load(self) -> None:
        try:
            state = torch.load(self.resume_file, map_location=self.team.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.beside.load_state_dict(state.get("beside", {}))
        except Exception as error:
            raise CheckpointError(
                f"{self.resume_file} does not fit this run ({error}); start anew without --resume"
            ) from error
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds, self.history = state["step"], state["seconds"], json.loads(state["history"])
        if self.team.size == 1:
            torch.set_rng_state(state["random"].cpu())

    def _ticking(self) -> Iterator[None]:
        """Yield while time is left; keeps `seconds`, of training alone, and the progress bar."""
        total = 60 * self.budget.minutes
        self.bar = tqdm(
            total=round(total), initial=round(self.seconds), unit="s", desc=self.name, disable=not self.team.leads
        )
        with Stopped() as stopped:
            while self.team.agree(self.seconds) < total:
                began = time.monotonic() - stopped.seconds()
                yield
                self.seconds += time.monotonic() - stopped.seconds() - began
                self.bar.n = round(self.seconds)
                self.bar.refresh() if self.step % 20 == 0 else None
        self.bar.close()

    def _set_rates(self) -> None:
        factor = self.team.agree(self.budget.rate(self.step, self.seconds))
        for optimiser, rates in zip(self.optimisers, self.base_rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        current = self.model.state_dict()
        names = [k for k, v in current.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in names], [current[k] for k in names], 1 - decay)

    def _show(self, show: Callable[[int], dict[str, float]]) -> dict[str, float]:
        raw = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        with torch.no_grad():
            figures = show(self.step)
        self.model.train()
        self.model.load_state_dict(raw)
        self.history.append({"step": self.step, "seconds": round(self.seconds, 1), **figures})
        tqdm.write(
            f"{self.name} step {self.step}, {self.seconds:.0f} s: "
            + ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        )
        return figures

    def _writer(self) -> SummaryWriter | None:
        if not self.team.leads:
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.out / "events"))


def spent(out: Path, name: str) -> float:
    """Seconds that a stage of a run folder was trained for; 0 where it was not."""
    history = out / f"{name}.json"
    return float(json.loads(history.read_text())[-1]["seconds"]) if history.exists() else 0.0


def load_weights(
    model: nn.Module,
    path: Path,
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights,
    code: str = "",
) -> None:
    """Load averaged weights strictly; what is missing, unexpected or mis-shaped is named. change: what to do to them
    first. code: of the codec that they are to work with; refused if they are said to have been trained with another.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: train that stage first")
    if code and known_code(path) not in (None, code):
        raise CheckpointError(
            f"{path} was trained with another codec than the one beside it: train it again "
            f"(worldloop train {path.stem}; a world may go on from these weights with --init)"
        )
    try:
        model.load_state_dict(change(load_file(path)))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the world's spec: {error}") from error


def known_code(path: Path) -> str | None:
    """The code of the codec that weights were trained with, if their file tells."""
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(CODE)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file; it appears under its name when it is complete."""
    partial = path.with_suffix(path.suffix + ".part")
    write(partial)
    os.replace(partial, path)

"""Teach a trained prompt encoder every colour name: `worldloop train prompt --init ENCODER`. One thread, some minutes.

`train.py` leaves names out, to measure what words that were never read mean to an encoder. A player should be
understood all the same. The meaning of the four vectors stays, so worlds that were trained on the encoder go on with
the taught one: where a colour lies is read off the names it knew, and that is where every name's vector is led.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import CheckpointError
from worldmodel.prompt.encoder import DIM, TOKENIZER, PromptEncoder, load_tokenizer, tokenise
from worldmodel.prompt.grammar import Example, Grammar, Lab, all_colours, known_colours
from worldmodel.prompt.train import BATCH, GRASS, ROAD, encode_noisily, learn
from worldmodel.train.envs import captions

RATE = 1e-3
TEXTS = 6  # with each name, to say where its colour lies
NEAR = 3.0  # CIE76 distance over which neighbouring names count as much as a colour's own


class Places:
    """Where an encoder puts colours, as road and as grass: kernel regression from Lab over the names it knows."""

    def __init__(self, encoder: PromptEncoder, colours: dict[str, Lab], rng: np.random.Generator) -> None:
        names = list(colours)
        texts = [captions.caption(rng, name, name) for name in names for _ in range(TEXTS)]
        tokenizer = load_tokenizer()
        portions = [tokenise(tokenizer, texts[at : at + 96]) for at in range(0, len(texts), 96)]
        found = torch.cat([encoder.encode_ids(*portion) for portion in portions])
        self.vectors = found.unflatten(0, (len(names), TEXTS)).mean(1)[:, [ROAD, GRASS]]  # [names, 2, 64]
        self.labs = torch.tensor(np.array([colours[name] for name in names]), dtype=torch.float32)

    def __call__(self, lab: Lab, vector: int) -> Tensor:
        """The vector [64] of a Lab colour, mean 0 and variance 1."""
        distance = (self.labs - torch.as_tensor(lab, dtype=torch.float32)).square().sum(1)
        share = (-distance / (2 * NEAR**2)).softmax(0)
        return F.layer_norm(share @ self.vectors[:, vector], (DIM,))


def teach(
    init: Path, out: Path, minutes: float, seed: int, progress: Callable[[str], None] = lambda line: None
) -> dict[str, float]:
    """Go on from the weights `init` for `minutes`; writes encoder.safetensors and tokenizer.json into `out`.

    Templates that `worldmodel.train.envs` holds out stay unread. Returns the number of steps and the last loss.
    """
    if not init.is_file():
        raise CheckpointError(f"{init} does not exist: --init is an encoder.safetensors")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    before = PromptEncoder.load(init)
    places = Places(before, {name: lab for name, lab in known_colours().items() if name in captions.train_names()}, rng)
    grammar = Grammar(all_colours(), ())
    tokenizer, rows, as_it_is = load_tokenizer(), before.table.float(), torch.eye(DIM)
    encoder = copy.deepcopy(before).train()
    average = copy.deepcopy(encoder)
    optimizer = torch.optim.AdamW(encoder.parameters(), betas=(0.9, 0.98), weight_decay=0.0)

    def losses() -> dict[str, Tensor]:
        examples = [grammar.draw(rng) for _ in range(BATCH)]
        ids, mask = tokenise(tokenizer, [example.texts[side] for side in (0, 1) for example in examples])
        wanted = led_to(places, before.encode_ids(ids, mask), examples)
        return {"loss": F.mse_loss(encode_noisily(encoder, rows, as_it_is, ids, mask), wanted)}

    last = learn(optimizer, [*average.parameters()], [*encoder.parameters()], RATE, minutes, losses, progress)
    out.mkdir(parents=True, exist_ok=True)
    average.save(out / "encoder.safetensors")
    if out.resolve() != TOKENIZER.parent.resolve():
        shutil.copyfile(TOKENIZER, out / "tokenizer.json")
    return last


def led_to(places: Places, told: Tensor, examples: list[Example]) -> Tensor:
    """What the encoder told before, [2 x examples, 4, 64], with every named colour where it belongs."""
    wanted = told.clone()
    for at, example in enumerate(examples):
        for vector, lab in ((ROAD, example.road), (GRASS, example.grass)):
            if lab is not None:
                wanted[at, vector] = wanted[at + len(examples), vector] = places(lab, vector)
    return wanted

"""Train the prompt encoder: `worldloop train prompt`. One CPU thread, about a quarter of an hour.

The heads that say what a text means (road and grass colour, whether they are named, scene, MiniLM's sentence
embedding) are linear in the prompt embedding and thrown away afterwards: what they can read off, a world can.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldmodel.prompt.encoder import DIM, MAX_TOKENS, VECTORS, PromptEncoder, same_size, tokenise
from worldmodel.prompt.grammar import SCENES, Example, Grammar, known_colours
from worldmodel.prompt.minilm import MiniLM
from worldmodel.train.envs import captions

BATCH = 96  # examples, two texts each
RATE = 2e-3
EMA = 0.998
GISTS = 32  # of the texts in a batch, how many also learn MiniLM's embedding of a text
GIST_POOL = 8192
WORD_LOSS = 0.02  # share of word pieces that turn into [UNK]
WORD_BLUR = 0.15  # standard deviation of the noise on a word's row, whose root mean square is 1
ROAD, GRASS, SCENE = 0, 1, 2  # which vector is read for what; SCENE and the last one carry the gist
LAB_CENTRE = torch.tensor([60.0, 0.0, 10.0])
LAB_SCALE = 30.0


class Readout(nn.Module):
    """The heads: linear maps of single vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.road = nn.Linear(DIM, 4)  # Lab, and the logit of being named
        self.grass = nn.Linear(DIM, 4)
        self.scene = nn.Linear(DIM, len(SCENES))
        self.gist = nn.Linear(2 * DIM, 384)
        self.unnamed = nn.Parameter(torch.randn(2, DIM))  # where road and grass lie when a text is silent about them


def train(
    out: Path,
    minutes: float,
    seed: int,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Train for `minutes` of wall time, after half a minute of MiniLM's reading.

    Writes encoder.safetensors and tokenizer.json into `out`. Equal seeds draw equal texts, but how many steps fit into
    the time depends on the machine. Returns the last losses.
    """
    began = time.monotonic()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    teacher = MiniLM()
    tokenizer = teacher.pruned_tokenizer(MAX_TOKENS)
    kept = teacher.word_embeddings[list(teacher.pruned_vocabulary().values())]
    rows = F.normalize(kept - kept.mean(0), dim=-1)  # [vocabulary, 384]
    grammar = Grammar(known_colours(), captions.held_out_names())
    gist_texts = draw_gist_texts(rng, grammar, tokenizer.get_vocab())
    gists = teacher.encode(gist_texts)
    gist_ids, gist_mask = tokenise(tokenizer, gist_texts)
    progress(f"MiniLM has read {GIST_POOL} texts, {time.monotonic() - began:.0f} s")

    encoder = PromptEncoder(torch.zeros(len(rows), DIM, dtype=torch.int8))
    projection = nn.Parameter(principal_axes(rows))  # [384, 64]
    readout = Readout()
    trained = nn.ModuleList([encoder, readout])
    average = copy.deepcopy(trained)
    average_projection = projection.detach().clone()
    optimizer = torch.optim.AdamW(
        [{"params": trained.parameters(), "weight_decay": 0.05}, {"params": [projection], "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )

    def losses() -> dict[str, Tensor]:
        examples = [grammar.draw(rng) for _ in range(BATCH)]
        ids, mask = tokenise(tokenizer, [example.texts[side] for side in (0, 1) for example in examples])
        picked = torch.from_numpy(rng.integers(GIST_POOL, size=GISTS))
        ids, mask = (torch.cat([widen(a), widen(b[picked])]) for a, b in ((ids, gist_ids), (mask, gist_mask)))
        prompt = encode_noisily(encoder, rows, projection, ids, mask)
        parts = measure(readout, prompt[: 2 * BATCH], examples)
        told = readout.gist(prompt[2 * BATCH :, SCENE:].flatten(1))
        parts["gist"] = 1 - F.cosine_similarity(told, gists[picked]).mean()
        return parts

    averages = [*average.parameters(), average_projection]
    last = learn(optimizer, averages, [*trained.parameters(), projection], RATE, minutes, losses, progress)
    out.mkdir(parents=True, exist_ok=True)
    table = rows @ average_projection
    trained.load_state_dict(average.state_dict())
    encoder.table.copy_((127 * table / table.abs().amax(1, keepdim=True).clamp(min=1e-6)).round().to(torch.int8))
    encoder.save(out / "encoder.safetensors")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    return {**last, "seconds": round(time.monotonic() - began, 1)}


def learn(
    optimizer: torch.optim.Optimizer,
    averages: list[Tensor],
    parameters: list[nn.Parameter],
    rate: float,
    minutes: float,
    losses: Callable[[], dict[str, Tensor]],
    progress: Callable[[str], None],
) -> dict[str, float]:
    """Follow the sum of the losses for `minutes`, at a rate that falls to nothing; `averages` follow the parameters.

    Returns the number of steps and the last losses.
    """
    step, last, began = 0, {}, time.monotonic()
    while (done := (time.monotonic() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        parts = losses()
        optimizer.zero_grad()
        sum(parts.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            keep = min(EMA, (step + 1) / (step + 10))
            for slow, fast in zip(averages, parameters, strict=True):
                slow.lerp_(fast, 1 - keep)
        step += 1
        last = {name: round(part.item(), 4) for name, part in parts.items()}
        if step % 100 == 0:
            progress(f"step {step}, {100 * done:.0f} %, {last}")
    return {"step": step, **last}


def encode_noisily(encoder: PromptEncoder, rows: Tensor, projection: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Prompt embeddings [texts, 4, 64] of texts some of whose words are lost, and all of whose words are blurred.

    In portions of like length and in bfloat16, which is five times as fast. ids, mask: int64 [texts, tokens].
    """
    order = mask.sum(1).argsort()
    found = []
    for portion in order.chunk(4):
        width = max(1, int(mask[portion].sum(1).max()))
        seen = ids[portion, :width]
        seen = torch.where(torch.rand(seen.shape) < WORD_LOSS, 1, seen)  # [UNK]: a word that nobody knows
        pieces, at = seen.unique(return_inverse=True)
        words = same_size(rows[pieces] @ projection)[at]
        words = words + WORD_BLUR * torch.randn_like(words)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(encoder.mix(words, mask[portion, :width]).float())
    return torch.cat(found)[order.argsort()]


def measure(readout: Readout, prompt: Tensor, examples: list[Example]) -> dict[str, Tensor]:
    """The losses of a batch of pairs. prompt: [2 x examples, 4, 64], first all first texts, then all second ones."""
    scene = torch.tensor([SCENES.index(example.scene) for example in examples]).repeat(2)
    parts = {"scene": 0.3 * F.cross_entropy(readout.scene(prompt[:, SCENE]), scene, label_smoothing=0.02)}
    for vector, name, head in ((ROAD, "road", readout.road), (GRASS, "grass", readout.grass)):
        labs = [getattr(example, name) for example in examples]
        named = torch.tensor([lab is not None for lab in labs]).repeat(2)
        wanted = torch.tensor(np.array([lab for lab in labs if lab is not None]), dtype=torch.float32).repeat(2, 1)
        told = head(prompt[:, vector])
        distance = (LAB_CENTRE + LAB_SCALE * told[named, :3] - wanted).square().sum(1)
        parts[name] = (distance + 4).sqrt().mean() / LAB_SCALE  # CIE76, blunt below 2
        parts[name + "_named"] = 0.2 * F.binary_cross_entropy_with_logits(told[:, 3], named.float())
        unnamed = F.layer_norm(readout.unnamed[vector], (DIM,))
        parts[name + "_unnamed"] = 0.2 * F.mse_loss(prompt[~named, vector], unnamed.expand(int((~named).sum()), DIM))
    first, second = prompt[:, : VECTORS - 1].chunk(2)
    parts["paraphrase"] = 0.3 * F.mse_loss(first, second)
    return parts


def principal_axes(rows: Tensor) -> Tensor:
    """The 64 directions in which the words' rows differ most: [384, 64], where the projection starts from."""
    _, vectors = torch.linalg.eigh(rows.T @ rows)
    return vectors[:, -DIM:].flip(1).contiguous()


def draw_gist_texts(rng: np.random.Generator, grammar: Grammar, vocabulary: dict[str, int]) -> list[str]:
    """Half texts of the grammar, half loose words, so that words from outside the captions land sensibly too."""
    loose = [piece for piece in vocabulary if piece.isalpha() and len(piece) > 2]
    texts = [grammar.draw(rng).texts[0] or "drive" for _ in range(GIST_POOL // 2)]
    while len(texts) < GIST_POOL:
        texts.append(" ".join(loose[i] for i in rng.integers(len(loose), size=rng.integers(1, 5))))
    return texts


def widen(ids: Tensor) -> Tensor:
    """Pad int64 [batch, tokens] with zeros to MAX_TOKENS."""
    return F.pad(ids, (0, MAX_TOKENS - ids.shape[1]))

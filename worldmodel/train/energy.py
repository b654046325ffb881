"""The energy score: what makes one pass from pure noise a sample, where the squared error makes it the mean.

Two draws of the noise are denoised from one history. Each shall be near the recording, and they shall be as far from
each other as from it: E|x - y| - E|x - x'| / 2 is least when x is distributed as y is, and only then (Gneiting and
Raftery 2007). Networks with noise as input learn weather that way (FGN, arXiv:2506.10772), and tokens of pictures
(EAR, arXiv:2505.07812); it needs neither teacher nor critic, which distribution matching does.

A network that cannot tell a thing that is certain draws it at random, by as much as it errs, and in a stream that adds
up. With less weight on the distance between the draws, such doubt, which has one peak, shrinks: at a weight of a half
to two fifths of its width. Alternatives that lie apart stay where they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.transformer.generator import patchify

BLUNT = 0.005  # distances below this count little: less than the codec's own noise


def energy_score(
    first: Tensor, second: Tensor, real: Tensor, patch: int, apart: float | Tensor = 1.0
) -> tuple[Tensor, Tensor]:
    """The score of every frame [batch, frames], and how far the draws lie apart in units of their distance to the real
    ones: less than 1 where they are too sure, 1 where they are distributed as real ones.

    first, second, real: [batch, frames, channels, rows, columns]. Judged at four sizes: places by themselves, so that
    small things count, two by two, so that neighbours fit together, the mean of every such square, so that shades are
    right where what is finer cannot be known, and the frame as a whole.
    apart: weight of the distance between the draws, of everything or, as it broadcasts, [batch, frames, rows, columns]
    of places; 1 makes the score proper.
    """
    sizes = list(zip(*(_sizes(latents, patch) for latents in (first, second, real)), strict=True))
    places = torch.as_tensor(apart, dtype=real.dtype, device=real.device).expand(
        *real.shape[:2], *(n // patch for n in real.shape[3:])
    )
    squares = F.avg_pool2d(places, 2, stride=1).flatten(2)
    scored = zip(sizes, (places.flatten(2), squares, squares, places.mean((2, 3)).unsqueeze(2)), strict=True)
    score = torch.stack([_score(one, other, there, weight) for (one, other, there), weight in scored]).mean(0)
    whole = sizes[-1]
    return score, (_distance(whole[0], whole[1]) / _distance(whole[0], whole[2])).squeeze(2)


def _sizes(latents: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, overlapping squares of two by two of them, the mean of each of these, and the whole frame: [batch,
    frames, pieces, numbers] each.
    """
    tokens = patchify(latents, patch)
    squares = F.unfold(latents.flatten(0, 1), 2 * patch, stride=patch).transpose(1, 2).unflatten(0, latents.shape[:2])
    shades = squares.unflatten(3, (latents.shape[2], -1)).mean(4)
    return tokens, squares, shades, tokens.flatten(2).unsqueeze(2)


def _score(first: Tensor, second: Tensor, real: Tensor, apart: Tensor) -> Tensor:
    skill = (_distance(first, real) + _distance(second, real)) / 2
    return (skill - apart * _distance(first, second) / 2).mean(2)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean square over the last axis, [batch, frames, places]."""
    return ((first - second).square().mean(-1) + BLUNT**2).sqrt()

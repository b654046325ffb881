"""A small perceptual network: how unlike are two frames, and what is typical of many?"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 48, 64)  # channels of the four levels
FAINT = 0.02  # strength up to which a feature counts as not there


class Eye(nn.Module):
    """Four levels of features, each half as large as the one before and seeing twice as far.

    `spread` (of `describe` over real frames of one scene) and `unrelated` (mean distance of two real frames from
    anywhere) give all figures a unit. Training sets them.
    """

    spread: Tensor
    unrelated: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Conv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in itertools.pairwise((3, *WIDTHS))
        )
        self.register_buffer("spread", torch.ones(WIDTHS[0] + sum(WIDTHS)))
        self.register_buffer("unrelated", torch.ones(()))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """float32 [batch, 3, height, width] in 0…1 to the levels' features [batch, channels, height/2ⁿ, width/2ⁿ]."""
        seen, found = pictures - 0.5, []
        for level in self.levels:
            seen = torch.relu(level(seen))
            found.append(seen)
        return found

    def describe(self, pictures: Tensor) -> Tensor:
        """A picture in numbers, [batch, features], in units of their spread over real frames of one scene.

        How strong each feature of the first level is (colours), and how much each feature of all levels changes from
        place to place (structure, sharpness), as logarithms: colours multiply structure by contrast, damage does so,
        too, and a scene's own contrast is then a constant.
        """
        return self._numbers(self(pictures)) / self.spread

    @staticmethod
    def _numbers(levels: list[Tensor]) -> Tensor:
        changes = [
            (level.diff(dim=2).abs().mean((2, 3)) + level.diff(dim=3).abs().mean((2, 3))) / 2 for level in levels
        ]
        return torch.log(torch.cat([levels[0].mean((2, 3)), *changes], 1) + FAINT)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """How unlike the pictures of each pair are, [batch]: 0 the same, 1 as two real frames from anywhere.

        As LPIPS (arXiv:1801.03924) it compares features place by place at several scales. Unlike there, differences
        count beside the features' own contrast and edges in these pictures, so that smeared edges weigh more than a
        shade of a large plain, and no weights are fitted to people's answers.
        """
        return _apart(self(first), self(second)) / self.unrelated

    @torch.no_grad()
    def set_units(self, first: Tensor, second: Tensor) -> None:
        """Measure `spread` and `unrelated`. Pictures [batch, 3, height, width]: pairs from one scene each, in random
        order.
        """
        levels = [
            [torch.cat(level) for level in zip(*(self(part) for part in pictures.split(64)), strict=True)]
            for pictures in (first, second)
        ]
        numbers = [self._numbers(part) for part in levels]
        spread = (numbers[0] - numbers[1]).square().mean(0).div(2).sqrt()
        self.spread.copy_(spread + 0.05 * spread.mean())  # a dead feature divides by no zero
        others = [level.roll(1, 0) for level in levels[0]]
        self.unrelated.copy_(_apart(levels[0], others).mean())


def _apart(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Mean over the levels of two shares: of the features' energy about their common mean, and of the energy of their
    changes from place to place, what is the pair's difference. [batch]
    """
    found = []
    for a, b in zip(first, second, strict=True):
        mean = (a + b).mean((2, 3), keepdim=True) / 2
        found.append(_share(_energy(a - b), _energy(a - mean) + _energy(b - mean)))
        changes = [(_energy((a - b).diff(dim=d)), _energy(a.diff(dim=d)) + _energy(b.diff(dim=d))) for d in (2, 3)]
        found.append(_share(changes[0][0] + changes[1][0], changes[0][1] + changes[1][1]))
    return torch.stack(found).mean(0)


def _energy(features: Tensor) -> Tensor:
    return features.square().sum((1, 2, 3))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part / (whole + 1e-6)

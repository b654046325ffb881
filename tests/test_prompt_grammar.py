"""What the prompt encoder is trained on keeps away from what it is tested on."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.prompt.forbidden import Forbidden
from worldmodel.prompt.grammar import Grammar, known_colours, modifier_shifts, plainly, shifted
from worldmodel.train.envs import captions


def test_no_held_out_name_is_ever_drawn() -> None:
    held_out = set(captions.held_out_names())
    grammar = Grammar(known_colours(), held_out)
    rng = np.random.default_rng(0)
    drawn = {plainly(grammar.respell(rng, grammar.colour(rng)[0])) for _ in range(50_000)}
    assert len(drawn) > 3000
    assert not drawn & held_out


@pytest.mark.parametrize(
    "name",
    [
        "Turquoise", "TURQUOISES", "Periwinkel", "Liliac", "Dark Gray-Blue", "dark greyblue", "Dark-Orange",
        "Blue/Gray", "Blueish Purple", "Purpleish Gray", "Greyish-Purple", "Lime Green (web)", "Brick_Red",
        "Redish Brown", "Khakí", "Light Urple",
    ],
)  # fmt: skip
def test_a_held_out_name_is_recognised_in_any_spelling(name: str) -> None:
    assert name in Forbidden(captions.held_out_names())


@pytest.mark.parametrize(
    "name", ["dark turquoise", "lavender blue", "purple grey", "cage", "sea sage", "blue", "grey blue"]
)
def test_names_that_only_share_words_with_held_out_ones_are_not_taken_for_them(name: str) -> None:
    assert name not in Forbidden(captions.held_out_names())


def test_no_known_colour_is_a_held_out_one_in_another_spelling() -> None:
    held_out, own = Forbidden(captions.held_out_names()), captions.train_names()
    assert not [name for name in known_colours() if name in held_out and name not in own]


def test_no_held_out_template_is_drawn() -> None:
    assert not set(Grammar(known_colours(), ()).templates) & set(captions.held_out_templates())


def test_dark_darkens_and_light_lightens_colours_that_no_name_gives() -> None:
    shifts = modifier_shifts(known_colours())
    grey_blue = np.array([50.0, -5.0, -20.0])
    assert shifted(grey_blue, shifts["dark"])[0] < 42
    assert shifted(grey_blue, shifts["light"])[0] > 58


def test_equal_seeds_draw_equal_texts() -> None:
    grammar = Grammar(known_colours(), captions.held_out_names())
    first, second = (grammar.draw(np.random.default_rng(5)).texts for _ in range(2))
    assert first == second

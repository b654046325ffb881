"""What the prompt encoder is trained on keeps away from what it is tested on."""

from __future__ import annotations

import numpy as np

from worldmodel.prompt.grammar import Grammar, known_colours, modifier_shifts, plainly, shifted
from worldmodel.train.envs import captions


def test_no_held_out_name_is_ever_drawn() -> None:
    held_out = set(captions.held_out_names())
    grammar = Grammar(known_colours(), held_out)
    rng = np.random.default_rng(0)
    drawn = {plainly(grammar.respell(rng, grammar.colour(rng)[0])) for _ in range(50_000)}
    assert len(drawn) > 3000
    assert not drawn & held_out


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

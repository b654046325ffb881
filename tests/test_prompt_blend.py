"""A prompt can be reached over several ticks: every step is a prompt of its own, which replays and saves hold."""

import numpy as np
import pytest

from runtime.actions_file import parse_actions
from runtime.errors import ActionsFileError, PromptError
from runtime.loop import Desk, play_script
from runtime.prompt import blend, embed_prompt, way_to
from runtime.replay import Recorder, open_replay, play_again
from runtime.session import Session
from runtime.world import World

MOCK = World.open("mock")


def one_hot(at: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[None, None, at]


class Letters:
    """A backend that knows three texts."""

    def embed(self, text: str) -> np.ndarray:
        return one_hot("abc".index(text)) if text else np.zeros((1, 1, 3), np.float32)


def test_a_blend_keeps_the_length_and_ends_where_it_should():
    a, b = one_hot(0), 3 * one_hot(1)
    assert np.allclose(blend(a, b, 0.0), a) and np.allclose(blend(a, b, 1.0), b, atol=1e-6)
    middle = blend(a, b, 0.5)
    assert np.linalg.norm(middle) == pytest.approx(2.0, abs=1e-5)
    assert middle[0, 0, 0] == pytest.approx(2 / np.sqrt(2), abs=1e-5) and middle.dtype == np.float32
    assert np.allclose(blend(a, np.zeros_like(a), 0.25), 0.75 * a)  # a row that ends nowhere


def test_a_place_between_two_texts_is_a_text():
    world = Letters()
    assert way_to("a", "b", 1) == ["b"] and way_to("a", "b", 3) == ["a -> b 1/3", "a -> b 2/3", "b"]
    halfway = embed_prompt(world, "a -> b 1/2")
    assert np.allclose(halfway, blend(one_hot(0), one_hot(1), 0.5))
    again = embed_prompt(world, "a -> b 1/2 -> c 1/4")  # turned elsewhere on the way
    assert np.allclose(again, blend(halfway, one_hot(2), 0.25))
    assert np.allclose(embed_prompt(world, " -> c 1/4"), 0.25 * one_hot(2))  # from no prompt at all
    with pytest.raises(ValueError, match="substring"):
        embed_prompt(world, "a -> b 4/2")  # no place between them, so it is the text itself
    with pytest.raises(PromptError, match="4096"):
        embed_prompt(world, "a" + " -> b 1/2" * 1000)


def test_an_actions_file_blends_and_its_replay_shows_the_same(tmp_path):
    script = parse_actions("gas\n@blend 4 blue white\ngas\n\n\n\n\n@prompt red green\n\n", MOCK.manifest, "x")
    session, desk, prompts = Session(MOCK, prompt="red green"), Desk(), []

    class Notes:
        def show(self, frame: np.ndarray) -> None:
            prompts.append(session.prompt)

    desk.recorder = Recorder(tmp_path / "a.replay", session, "mock")
    play_script(session, script, len(script), desk, [Notes()])
    desk.recorder.close()
    between = [f"red green -> blue white {n}/4" for n in (1, 2, 3)]
    assert prompts == ["red green", *between, "blue white", "blue white", "red green"]
    palette = session.peek()["palette"].copy()
    again = Session(MOCK, prompt="red green")
    shown = [step.frame for step in play_again(open_replay(tmp_path / "a.replay"), again)]
    assert len(shown) == len(script) and (again.peek()["palette"] == palette).all()


@pytest.mark.parametrize(
    "line, said", [("@blend red", "number of ticks"), ("@blend 0 red", "got '0'"), ("@blend 3", "text of 1")]
)
def test_a_senseless_blend_is_named(line, said):
    with pytest.raises(ActionsFileError, match=said):
        parse_actions(f"{line}\n\n", MOCK.manifest, "x")

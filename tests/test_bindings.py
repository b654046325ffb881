"""Keys become actions, and no press is lost, however short."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.bindings import Controls
from runtime.manifest import Action

ACTIONS = [Action("left", ("left", "a")), Action("gas", ("up", "w")), Action("jump", ("space", "w"))]


def test_nothing_pressed_is_no_action():
    assert Controls(ACTIONS).read().actions == frozenset()


def test_a_held_key_acts_in_every_tick_until_it_is_released():
    controls = Controls(ACTIONS)
    controls.press("a", 1.0)
    assert [controls.read().actions for _ in range(3)] == [{"left"}] * 3
    controls.release("a", 2.0)
    assert controls.read().actions == frozenset()


def test_a_tap_shorter_than_a_tick_acts_in_exactly_one():
    controls = Controls(ACTIONS)
    controls.press("space", 1.0)
    controls.release("space", 1.001)
    assert [controls.read().actions for _ in range(2)] == [{"jump"}, frozenset()]


def test_a_key_released_and_pressed_again_within_a_tick_stays_held():
    controls = Controls(ACTIONS)
    controls.press("a", 1.0)
    controls.read()
    controls.release("a", 1.1)
    controls.press("a", 1.2)
    assert [controls.read().actions for _ in range(2)] == [{"left"}] * 2


def test_one_key_may_mean_two_actions_and_two_keys_one():
    controls = Controls(ACTIONS)
    controls.press("w", 1.0)
    assert controls.read().actions == {"gas", "jump"}
    controls.press("a", 1.1)
    controls.press("left", 1.2)
    controls.release("a", 1.3)
    assert controls.read().actions == {"gas", "jump", "left"}


def test_keys_that_mean_nothing_are_ignored():
    controls = Controls(ACTIONS)
    controls.press("q", 1.0)
    controls.release("q", 1.1)
    controls.release("a", 1.2)
    assert controls.read().actions == frozenset() and controls.read().arrived is None


def test_losing_the_keyboard_releases_everything():
    controls = Controls(ACTIONS)
    controls.press("a", 1.0)
    controls.release_all()
    assert controls.read().actions == frozenset()


def test_a_reading_tells_when_its_newest_event_came():
    controls = Controls(ACTIONS)
    controls.press("a", 1.0)
    controls.press("w", 1.5)
    assert controls.read().arrived == 1.5
    assert controls.read().arrived is None
    controls.release("a", 1.7)
    assert controls.read().arrived == 1.7


@given(st.lists(st.sampled_from(["press", "release", "read"]), max_size=60))
def test_every_press_is_seen_by_the_next_reading(events):
    controls = Controls(ACTIONS)
    pressed_since = held = False
    for at, event in enumerate(events):
        if event == "press":
            controls.press("left", at)
            pressed_since = held = True
        elif event == "release":
            controls.release("left", at)
            held = False
        else:
            assert ("left" in controls.read().actions) == (pressed_since or held)
            pressed_since = False

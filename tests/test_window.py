"""The window's events: keyboard, mouse and gamepad press keys alike; the player's own keys ask for things."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.bindings import Controls
from runtime.bindings_file import read_bindings, write_bindings
from runtime.loop import Request, Status
from runtime.world import World

MANIFEST = World.open("mock").manifest


@pytest.fixture
def window(monkeypatch, tmp_path):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    from runtime.window import Window

    controls = Controls(MANIFEST.actions)

    def rebound() -> None:
        write_bindings(tmp_path / "bindings.toml", MANIFEST, controls.keys)

    with Window("test", (96, 64), controls, MANIFEST.prompts, lambda: 1.0, rebound) as opened:
        opened.requests()
        yield opened


def post(window, *events) -> list[Request]:
    """Events as pygame gives them: (type, fields), or a key's name: pressed and released."""
    import pygame

    for event in events:
        if isinstance(event, str):
            code = pygame.key.key_code(event)
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=code))
            pygame.event.post(pygame.event.Event(pygame.KEYUP, key=code))
        else:
            kind, fields = event
            pygame.event.post(pygame.event.Event(getattr(pygame, kind), **fields))
    return window.requests()


def test_keyboard_mouse_and_gamepad_act_alike(window):
    import pygame

    window.controls.bind({"left": ("a",), "right": ("mouse:right",), "gas": ("pad:a", "mouse:wheel up"), "brake": ()})
    pad_a = {"button": pygame.CONTROLLER_BUTTON_A, "instance_id": 0}
    post(window, ("KEYDOWN", {"key": pygame.K_a}), ("MOUSEBUTTONDOWN", {"button": 3}))
    post(window, ("CONTROLLERBUTTONDOWN", pad_a), ("CONTROLLERBUTTONUP", pad_a))
    assert window.controls.read().actions == {"left", "right", "gas"}
    assert window.controls.read().actions == {"left", "right"}
    post(window, ("KEYUP", {"key": pygame.K_a}), ("MOUSEBUTTONUP", {"button": 3}))
    assert window.controls.read().actions == frozenset()


def test_a_stick_presses_while_it_leans_and_the_mouse_when_it_moves(window):
    window.controls.bind({"left": ("pad:left",), "right": ("pad:right",), "gas": ("mouse:move up",), "brake": ()})

    def lean(value: int) -> frozenset[str]:
        post(window, ("CONTROLLERAXISMOTION", {"axis": 0, "value": value, "instance_id": 0}))
        return window.controls.read().actions

    assert [lean(v) for v in (-30000, -29000)] == [{"left"}] * 2
    assert lean(30000) == {"right"} and lean(100) == frozenset()
    post(window, ("MOUSEMOTION", {"rel": (0, -20), "pos": (0, 0), "buttons": (0, 0, 0)}))
    assert [window.controls.read().actions for _ in range(2)] == [{"gas"}, frozenset()]


def test_a_mouse_that_tells_of_every_pixel_moves_as_far_as_one_that_sums_them_up(window):
    window.controls.bind({"left": ("mouse:move left",), "right": ("mouse:move right",), "gas": (), "brake": ()})

    def move(*steps: int) -> frozenset[str]:
        post(window, *(("MOUSEMOTION", {"rel": (x, 0), "pos": (0, 0), "buttons": (0, 0, 0)}) for x in steps))
        return window.controls.read().actions

    assert move(8) == move(*[1] * 8) == {"right"}
    assert move(*[-1] * 12) == {"left"}
    assert move(*[1, -1] * 20) == frozenset()  # a shaking hand


class Pad:
    """A gamepad of SDL's own, plugged in and played by its functions: pygame sees a real one."""

    BUTTONS, AXES, GAMEPAD = 15, 6, 1

    def __init__(self) -> None:
        import pygame

        beside = Path(pygame.__file__).parents[1]
        found = sorted(beside.glob("pygame*.libs/libSDL2-2*"))
        if not found:
            pytest.skip("pygame has no SDL of its own here")
        self.sdl = ctypes.CDLL(str(found[0]))
        self.sdl.SDL_JoystickOpen.restype = ctypes.c_void_p
        self.number = self.sdl.SDL_JoystickAttachVirtual(self.GAMEPAD, self.AXES, self.BUTTONS, 0)
        assert self.number >= 0
        self.joystick = ctypes.c_void_p(self.sdl.SDL_JoystickOpen(self.number))

    def button(self, number: int, down: bool) -> None:
        self.sdl.SDL_JoystickSetVirtualButton(self.joystick, number, ctypes.c_uint8(down))

    def axis(self, number: int, value: int) -> None:
        self.sdl.SDL_JoystickSetVirtualAxis(self.joystick, number, ctypes.c_int16(value))

    def pull_out(self) -> None:
        self.sdl.SDL_JoystickDetachVirtual(self.number)


@pytest.fixture
def pad(window) -> Iterator[Pad]:
    plugged_in = Pad()
    for _ in range(2):  # it is told of, then opened
        window.requests()
    yield plugged_in
    plugged_in.pull_out()


def test_a_gamepad_that_is_plugged_in_plays_and_its_keys_can_be_chosen(window, pad):
    import pygame

    def after(act) -> frozenset[str]:
        act()
        for _ in range(2):  # SDL sees what it holds when events are asked for, and tells the next time
            window.requests()
        return window.controls.read().actions

    a, right_trigger = pygame.CONTROLLER_BUTTON_A, pygame.CONTROLLER_AXIS_TRIGGERRIGHT
    assert after(lambda: pad.button(a, True)) == {"gas"} and after(lambda: pad.button(a, False)) == frozenset()
    assert after(lambda: pad.axis(0, -30000)) == {"left"} and after(lambda: pad.axis(0, 0)) == frozenset()
    post(window, "f2", "return", "return")
    after(lambda: pad.axis(right_trigger, 32000))
    after(lambda: pad.axis(right_trigger, -32768))
    post(window, "return")
    assert window.controls.keys["gas"] == ("pad:rt",)
    assert after(lambda: pad.axis(right_trigger, 32000)) == {"gas"} == after(lambda: None)


def test_what_a_gamepad_held_is_let_go_when_it_is_pulled_out(window, pad):
    pad.axis(0, -30000)
    for _ in range(2):
        window.requests()
    assert window.controls.read().actions == {"left"}
    pad.pull_out()
    for _ in range(2):
        window.requests()
    assert [window.controls.read().actions for _ in range(2)] == [frozenset()] * 2


def test_a_stick_that_was_let_go_elsewhere_presses_again(window):
    lean = {"axis": 0, "value": -30000, "instance_id": 0}
    post(window, ("CONTROLLERAXISMOTION", lean), ("WINDOWFOCUSLOST", {}))
    assert window.controls.read().actions == frozenset()
    post(window, ("CONTROLLERAXISMOTION", lean))
    assert window.controls.read().actions == {"left"}


def test_the_mouse_draws_in_worlds_that_know_where_the_pointer_is(window):
    places = {f"{axis}{1 << n}": (f"pointer:{axis}{1 << n}",) for axis in "xy" for n in range(7)}
    window.controls.bind({"draw": ("mouse:left",), **places})
    window.picture(np.zeros((64, 96, 3), np.uint8))
    left, top, width, height = window._area

    def move(x: float, y: float) -> None:
        at = left + round(x * width), top + round(y * height)
        post(window, ("MOUSEMOTION", {"rel": (1, 1), "pos": at, "buttons": (0, 0, 0)}))

    move(0.1, 0.1)
    move(0.75, 0.5)
    assert window.controls.read().actions == {"x64", "x32", "y64"}  # where it is, not where it has been
    post(window, ("MOUSEBUTTONDOWN", {"button": 1}), ("MOUSEBUTTONUP", {"button": 1}))
    assert [window.controls.read().actions for _ in range(2)] == [{"draw", "x64", "x32", "y64"}, {"x64", "x32", "y64"}]
    move(-1, 5)
    assert window.controls.read().actions == {f"y{1 << n}" for n in range(7)}  # outside: the nearest place
    post(window, "f2", "q")  # the pointer's places are nobody's keys to choose
    assert window.controls.keys == {"draw": ("q",), **places}


def test_the_players_keys_ask_for_things(window):
    assert [r.kind for r in post(window, "p", ".", "r", "f3", "f4", "f5", "f6", "f9")] == [
        "pause", "step", "restart", "fork", "branch", "save", "next_save", "load",
    ]  # fmt: skip
    import pygame

    post(window, ("KEYDOWN", {"key": pygame.K_BACKSPACE}))
    assert window.rewinding
    post(window, ("KEYUP", {"key": pygame.K_BACKSPACE}))
    assert not window.rewinding
    post(window, "escape")
    assert not window.is_open


def test_a_save_is_named_and_a_prompt_suggested_in_the_window(window):
    text = ("TEXTINPUT", {"text": "my bend"})
    assert post(window, "f7", text, "return") == [Request("save_as", "my bend")]
    assert post(window, "tab", "down", "return") == [Request("prompt", MANIFEST.prompts[0])]
    assert post(window, "tab", text, "escape") == [] and window.is_open


def test_keys_are_chosen_in_the_window_and_written_down(window, tmp_path):
    post(window, "f2", "q", "escape")  # thought better of it
    assert window.controls.keys["left"][0] == "left"
    post(window, "f2", "q", "f5")
    assert "f5 is a key of the window" in window._notice
    post(window, ("MOUSEBUTTONDOWN", {"button": 3}), "return", "x")
    assert window.controls.keys == {
        "left": ("q",), "right": ("mouse:right",), "gas": ("up", "w", "pad:up", "pad:a"), "brake": ("x",),
    }  # fmt: skip
    assert read_bindings(tmp_path / "bindings.toml", MANIFEST) == window.controls.keys
    post(window, "q")
    assert window.controls.read().actions == {"left"}


def test_the_window_shows_the_frame_enlarged_and_the_hud_over_it(window):
    import pygame

    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    status = Status(3, 1.0, 0, 0.5, "red", 7, paused=False)
    window.show(frame, status)
    shown = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
    times = shown.shape[1] // 96
    assert times >= 4 and np.array_equal(shown[::times, ::times][:64, :96], frame)
    window.show_hud = True
    window.notify("saved", frame)
    window.show(frame, status)
    over = pygame.surfarray.array3d(pygame.display.get_surface()).transpose(1, 0, 2)
    assert not np.array_equal(over[:80], shown[:80]) and not np.array_equal(over[-100:, -100:], shown[-100:, -100:])


def test_long_lines_are_broken_where_the_window_ends(window):
    from runtime.window import wrapped

    width = window._font.size("a" * 30)[0]
    for line in ("a white street across a sky blue plain " * 5, "x" * 200, "a   b", "", "short"):
        pieces = wrapped(line, window._font, width)
        assert "".join(pieces) == line
        assert all(window._font.size(piece.rstrip())[0] <= width for piece in pieces)
    assert wrapped("to be or", window._font, window._font.size("to be")[0]) == ["to be ", "or"]
    frame = np.zeros((64, 96, 3), np.uint8)
    window._typed = "i" * 200 + "wwwww" * 30
    window.show(frame, Status(3, 1.0, 0, 0.5, "red " * 60, 7, paused=False))

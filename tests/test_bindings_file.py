"""The player's own keys: read, written, and never a crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from runtime.bindings import Controls
from runtime.bindings_file import read_bindings, write_bindings
from runtime.errors import BindingsError
from runtime.world import World

MANIFEST = World.open("mock").manifest


def file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "bindings.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_without_a_file_the_worlds_keys_hold_and_the_gamepad_has_its_own(tmp_path):
    keys = read_bindings(tmp_path / "none.toml", MANIFEST)
    assert keys["left"] == ("left", "a", "pad:left") and "pad:a" in keys["gas"] and "mouse:left" in keys["brake"]


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    keys = read_bindings(file(tmp_path, '[mock]\ngas = ["G", "mouse:right"]\n[other]\nfly = ["x"]\n'), MANIFEST)
    assert keys["gas"] == ("g", "mouse:right") and keys["left"] == ("left", "a", "pad:left")


def test_gamepad_and_mouse_act_like_keys(tmp_path):
    controls = Controls(MANIFEST.actions)
    controls.bind(read_bindings(file(tmp_path, '[mock]\ngas = ["mouse:wheel up"]\n'), MANIFEST))
    controls.press("pad:left", 1.0)
    controls.tap("mouse:wheel up", 1.1)
    assert [controls.read().actions for _ in range(2)] == [{"left", "gas"}, {"left"}]


def test_what_is_written_is_read_again_and_other_worlds_stay(tmp_path):
    path = file(tmp_path, '[other]\nfly = ["x"]\n')
    keys = {"left": ("q",), "right": ("e", 'a"b\\'), "gas": (), "brake": ("mouse:move left",)}
    write_bindings(path, MANIFEST, keys)
    assert read_bindings(path, MANIFEST) == keys and "fly" in path.read_text()


@pytest.mark.parametrize(
    "text, said",
    [
        ("[mock]\nfly = ['x']", "no action 'fly'; it has: left, right, gas, brake"),
        ("mock = 3", "must be a table"),
        ("[mock]\ngas = 'w'", "must be a list"),
        ("[mock]\ngas = [1]", "no key's name"),
        ("[mock]\ngas = ['escape']", "belongs to the player"),
        ("[mock\n", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ("x = " + "[" * 5000, "cannot be read"),
    ],
)
def test_a_senseless_file_says_what_is_wrong(tmp_path, text, said):
    with pytest.raises(BindingsError, match=said):
        read_bindings(file(tmp_path, text), MANIFEST)


def test_damaged_files_are_read_or_refused(tmp_path):
    rng, whole = random.Random(0), b'[mock]\ngas = ["w", "pad:a"]\nleft = ["a"]\n'
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read_bindings(file(tmp_path, bytes(data)), MANIFEST)
        except BindingsError:
            continue


def test_every_event_has_an_id_and_a_reading_names_the_newest():
    controls = Controls(MANIFEST.actions)
    assert controls.read().newest == 0
    controls.press("a", 1.0)
    controls.press("w", 1.2)
    assert controls.read().newest == 2
    controls.release("a", 1.3)
    controls.press("unbound", 1.4)
    assert controls.read().newest == 3 and controls.read().newest == 3

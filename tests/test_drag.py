"""A world where points of the picture can be led: from the game's geometry to training, to a file, to play."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from random_world import random_world
from safetensors.torch import load_file
from test_camera_motion import PANORAMA, learned, panorama, recorded, written
from test_export import CARD, SPEC, FakeGame

from export.onnx import export_graphs
from export.pack import pack
from runtime.bindings import Controls
from runtime.cli import main
from runtime.parity import TOLERANCE, compare
from runtime.replay import Recorder, open_replay, play_again
from runtime.session import Session
from runtime.world import World
from worldmodel.condition.drag import dragged
from worldmodel.condition.native import buttons, presses_of
from worldmodel.condition.tracks import REACH, drawing
from worldmodel.errors import DatasetError, SpecError
from worldmodel.schedule.table import rolling
from worldmodel.spec import CameraSpec, DragSpec, WorldSpec
from worldmodel.tick import State, next_latent, state_shapes, tick
from worldmodel.tick import World as TorchWorld
from worldmodel.train.codec import train_codec
from worldmodel.train.dataset import Dataset
from worldmodel.train.distil.long_tuning import Streamed
from worldmodel.train.distil.roll_out import Played
from worldmodel.train.distil.rolling_forcing import Rolled
from worldmodel.train.distil.setting import Setting
from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.envs.motion import picture_motion, usual_drag
from worldmodel.train.latents import LatentSet, tracks_of
from worldmodel.train.plan import plan_world, with_conditions
from worldmodel.train.preview import begin_play
from worldmodel.train.run import load_weights
from worldmodel.train.world import fitted, train_world
from worldmodel.transformer.clip import clip_layer

LED = replace(SPEC, tracks=DragSpec(pixels=4.0))


def apart(
    before: np.ndarray, now: np.ndarray, motion: np.ndarray, cell: int, least: float = 1
) -> list[tuple[float, float]]:
    """For every cell that moved: how unlike what is amid it is to what was where it came from, and to what was here."""
    found = []
    for row, column in np.argwhere(np.nan_to_num(np.abs(motion).max(-1)) > least):
        middle = np.array([column, row], np.float32) * cell + cell / 2 - 0.5
        around = [
            cv2.getRectSubPix(picture, (5, 5), tuple(map(float, place))).astype(np.float32)
            for picture, place in ((now, middle), (before, middle - motion[row, column, ::-1]), (before, middle))
        ]
        found.append(tuple(float(np.abs(around[0] - other).mean()) for other in around[1:]))
    return found


def test_a_doom_recording_tells_where_everything_came_from(tmp_path):
    pytest.importorskip("vizdoom")
    from worldmodel.train.envs.vizdoom import VizDoom

    rooms = VizDoom(["health_gathering"], tracks=True)
    dataset = recorded(tmp_path, rooms, "vizdoom", 60)
    rooms.close()
    frames, motion = dataset.read(0, "frames"), picture_motion(dataset).astype(np.float32)
    assert motion.shape == (60, 15, 20, 2) and not np.isfinite(motion[0]).any()
    assert np.isfinite(motion[1:]).mean() > 0.8
    found = [pair for frame in range(1, 60) for pair in apart(frames[frame - 1], frames[frame], motion[frame], 8)]
    moved, still = np.mean(found, 0)
    assert len(found) > 1000 and moved < 0.5 * still
    assert np.array_equal(picture_motion(dataset, 16)[:, 1, 2], motion[:, 3, 5], equal_nan=True)


def test_a_monster_that_walks_moves_while_the_room_stands_still():
    pytest.importorskip("vizdoom")
    from worldmodel.train.envs.vizdoom import VizDoom

    room, found, stood = VizDoom(["basic"], tracks=True), [], []
    before = room.reset(3)
    for _ in range(100):
        away = room.view().bearing(room.view().monsters[0])
        now, _ = room.step(np.array([away > 15, away < -15, False, False]))
        if abs(away) <= 15:
            motion = room.motion().astype(np.float32)
            found += apart(before, now, motion, 8, least=0.5)
            stood.append(np.mean(np.nan_to_num(motion) == 0))
        before = now
    room.close()
    moved, still = np.mean(found, 0)
    assert len(found) > 50 and moved < 0.6 * still and np.mean(stood) > 0.95


def test_a_drive_tells_where_the_ground_came_from_but_nothing_of_the_car(tmp_path):
    dataset = recorded(tmp_path, CarRacing(size=64, recolour=False), "car_racing", 60)
    frames, motion = dataset.read(0, "frames"), picture_motion(dataset, 4).astype(np.float32)
    found = [pair for frame in range(1, 60) for pair in apart(frames[frame - 1], frames[frame], motion[frame], 4)]
    moved, still = np.mean(found, 0)
    assert len(found) > 1000 and moved < 0.5 * still
    assert not np.isfinite(picture_motion(dataset, 2)[:, 23:25, 15:17]).any() and usual_drag(dataset).pixels > 1


def test_a_recording_without_tracks_says_so(tmp_path):
    with pytest.raises(DatasetError, match="'crafter' tells none; known of car_racing, vizdoom"):
        picture_motion(written(tmp_path / "a", {"x": [0.0]}, [0], "crafter"))
    with pytest.raises(DatasetError, match="recorded without motion; record it again with --tracks"):
        picture_motion(written(tmp_path / "b", {"x": [0.0]}, [0], "vizdoom"))
    with pytest.raises(DatasetError, match="two frames"):
        usual_drag(written(tmp_path / "c", {"x": [0.0], "y": [0.0], "yaw": [0.0]}, [0], "car_racing"))
    with pytest.raises(SpecError, match="above 0"):
        DragSpec(0.0)
    with pytest.raises(SystemExit) as left:
        main(["record", "CarRacing-v3", "--tracks", "--frames", "10", "--out", str(tmp_path / "d")])
    assert left.value.code == 2


def test_a_mirrored_map_leads_the_other_way_from_the_other_side(tmp_path):
    facts = {"x": [0, 1.0], "y": [0, 0.5], "yaw": [0, 0.1]}
    spec = replace(LED, codec=replace(LED.codec, down=2), generator=replace(LED.generator, patch=2), height=8, width=8)
    one, other = tracks_of(written(tmp_path, facts, [0, 0], "car_racing"), DragSpec(2.0), spec, 2)
    assert one[1, 0].any() and not one[0].any() and (one[1, 1:].abs() <= 1).all()
    assert torch.equal(other[:, :2], one[:, :2].flip(3)) and torch.equal(other[:, 2], -one[:, 2].flip(2))
    assert not one[1, 1:][one[1, :1].expand(2, -1, -1) == 0].any()


SHIFTED = replace(
    PANORAMA, name="shifted", width=24, camera=None, tracks=DragSpec(4.0),
    generator=replace(PANORAMA.generator, reach=(0, 1)),
)  # fmt: skip


def shifted(frames: int) -> LatentSet:
    """A pattern that goes a cell to the left or right; no key has to do with it."""
    rng = np.random.default_rng(0)
    went = torch.from_numpy(rng.choice([-1, 1], frames) * (np.arange(frames) > 0))
    pattern = torch.from_numpy(rng.normal(size=(2, 4, 6))).half()
    seen = torch.stack([pattern.roll(int(shift), 2) for shift in went.cumsum(0)])[None]
    tracks = torch.zeros(1, frames, 3, 4, 6).half()
    tracks[0, 1:, 0], tracks[0, :, 2] = 1, went[:, None, None]
    plain = panorama(frames)
    return replace(plain, latents=seen, actions=torch.ones_like(plain.actions), camera=None, tracks=tracks)


def test_a_few_points_of_a_frame_are_led_or_none_and_then_often_without_keys():
    latents, draw = shifted(600), torch.Generator().manual_seed(0)
    starts = latents.starts(7)[50:]  # the first sinks have no tracks
    clip = latents.clips(SHIFTED, starts, 8, draw).clip
    there, down, right = clip.led.unbind(2)
    points, key = there[:, 1:].sum((2, 3)), clip.actions[:, 1:, -1, 0]
    assert 0.35 < (there.sum((1, 2, 3)) == 0).float().mean() < 0.75, "in many clips nobody leads anything"
    assert 2 < points[points > 0].mean() < 8 and points.max() < there[0, 0].numel()
    assert not right[there == 0].any() and not down.any() and right[there == 1].abs().mean() > 0.5
    assert (key[points == 0] == 1).all() and 0.3 < key[points > 0].mean() < 0.7
    assert torch.equal(clip.actions[:, 2:, 0], clip.actions[:, 1:-1, 1]), "a tick is told the same in later histories"
    assert latents.with_nobody_leading().clips(SHIFTED, starts, 8, draw).clip.led is None


def test_a_trained_world_goes_where_points_are_led(monkeypatch):
    monkeypatch.setattr("worldmodel.train.latents.DRAGGED", 0.9)  # to learn it in seconds
    monkeypatch.setattr("worldmodel.train.latents.POINTS", (12,))
    latents, draw = shifted(600), torch.Generator().manual_seed(0)
    world = learned(SHIFTED, latents, draw)
    clip = latents.clips(SHIFTED, latents.starts(7)[::20], 8, draw).clip
    before, players = begin_play(world, clip, 4, SHIFTED.schedule), len(clip.clean)
    for right in (-1, 1):
        led = torch.zeros(players, 3, 4, 6)
        led[:, 0, :, ::2], led[:, 2, :, ::2] = 1, right
        noise = torch.randn(players, SHIFTED.schedule.noises, *SHIFTED.latent_shape, generator=draw)
        with torch.no_grad():
            made, _ = next_latent(world, before, torch.zeros(players, 1), clip.prompt[:, 4], noise, led=led)
        shown = clip.clean[:, 4]
        away = [(made - shown.roll(way, 3))[..., 1:-1].square().mean((1, 2, 3)) for way in (-1, 0, 1)]
        assert (torch.stack(away).argmin(0) == right + 1).float().mean() > 0.8


def test_roll_outs_of_students_are_led_and_so_are_their_scores(monkeypatch):
    monkeypatch.setattr("worldmodel.train.latents.DRAGGED", 1.0)
    torch.manual_seed(0)
    world = TorchWorld(replace(SHIFTED, schedule=rolling(2)))
    setting = Setting(world, world, shifted(200), 2, clip_layer)
    for sampler in (Played(setting, 4), Rolled(setting, windows=1), Streamed(setting)):
        led = [False]
        with monkeypatch.context() as patch:
            told = world.generator.led_tokens
            patch.setattr(world.generator, "led_tokens", lambda x, led=led, told=told: led.append(x.any()) or told(x))
            sample = sampler(torch.Generator().manual_seed(0))
        assert any(led) and sample.clip.led.shape[:2] == sample.made.shape[:2] and sample.clip.led.any()


def test_a_run_learns_tracks_goes_on_and_begins_from_a_world_without(tmp_path):
    data, out, led = tmp_path / "data", tmp_path / "plain", tmp_path / "led"
    data.mkdir()
    recorded(data, CarRacing(size=32), "car_racing", 120)
    small = [
        "codec.encoder_width=8", "codec.encoder_blocks=1", "codec.decoder_widths=(8,8)", "codec.decoder_blocks=(1,1)",
        "generator.depth=1", "generator.heads=2", "generator.dim=32",
    ]  # fmt: skip
    spec = plan_world(data, out, small)
    train_codec(spec, data, out, minutes=0.01, batch=8, frames=120)
    train_world(spec, data, out, minutes=0.01, batch=2)
    with pytest.raises(SpecError, match="knows no tracks: copy its spec"):
        with_conditions(data, out, ["tracks"])
    led.mkdir()
    for name in ("spec.json", "codec.safetensors"):
        (led / name).write_bytes((out / name).read_bytes())
    told = with_conditions(data, led, ["tracks"])
    assert told.tracks == usual_drag(Dataset(data)) and WorldSpec.from_json(told.to_json()) == told
    first = train_world(told, data, led, minutes=0.02, batch=2, init=out / "world.safetensors")
    more = train_world(told, data, led, minutes=first["seconds"] / 60 + 0.02, batch=2, resume=True)
    assert more["step"] > first["step"]
    assert load_file(led / "world.safetensors")["led.weight"].abs().max() > 0
    assert both_led(spec, told, out / "world.safetensors")


def both_led(spec: WorldSpec, told: WorldSpec, weights: Path) -> bool:
    """Whether a world with tracks that begins from one without makes the same frames, led or not."""
    worlds = TorchWorld(spec).eval(), TorchWorld(told).eval()
    worlds[1].codec.load_state_dict(worlds[0].codec.state_dict())
    frames = []
    for world in worlds:
        load_weights(world.generator, weights, partial(fitted, world))
        assert (world.generator.led is None) == (world.spec.tracks is None)
        state = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in state_shapes(world.spec).items()}
        noise = torch.randn(1, spec.schedule.noises, *spec.latent_shape, generator=torch.Generator().manual_seed(1))
        prompt = torch.zeros(1, spec.prompt_tokens, spec.prompt_dim)
        held = press(world.spec, "gas", *(drawing(0.5, 0.5) if world.spec.tracks else ()))
        with torch.no_grad():
            frames.append(tick(world, state, held, prompt, noise)[0])
    return torch.equal(*frames)


def test_a_world_without_tracks_is_what_it_was():
    assert "tracks" not in SPEC.to_json() and not any(name.startswith("tracks") for name in state_shapes(SPEC))


def press(spec: WorldSpec, *names: str) -> torch.Tensor:
    return torch.tensor([[float(button.name in names) for button in buttons(spec)]])


def lead(state: State, *names: str, spec: WorldSpec = LED) -> tuple[torch.Tensor, State]:
    return dragged(spec, state, presses_of("tracks", spec, press(spec, *names)))


def test_a_dragged_point_tells_its_new_cell_how_far_it_came():
    state = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in state_shapes(LED).items()}
    told, state = lead(state, "gas")
    assert not told.any(), "nobody draws"
    told, state = lead(state, *drawing(0.2, 0.3))  # of 32 pixels, in 4 by 4 cells
    assert told.nonzero().tolist() == [[0, 0, 1, 0]], "a point that was just taken up stays where it is"
    told, state = lead(state, *drawing(0.3, 0.3))
    assert told[0, :, 1, 1].tolist() == pytest.approx([1, 0, 0.1 * 32 / 4], abs=0.1) and told[0, 0].sum() == 1
    told, state = lead(state, *drawing(0.9, 0.1))
    assert told[0, :, 0, 1].tolist() == [1, -1, 1], "as fast as the world has learned, and no faster"
    told, state = lead(state)
    assert told[0, 0].sum() == 1 and not told[0, 1:].any(), "what is let go of stays in its place"
    told, state = lead(state, *drawing(0.1, 0.9))
    assert told[0, 0].sum() == 2 and not told[0, 1:].any()
    near = drawing(0.1 + REACH / 2, 0.9)
    told, state = lead(lead(state)[1], *near)
    assert told[0, 0].sum() == 2 and not told[0, 1:].any(), "taking a point up again does not move it"
    told, state = lead(state, "let_go")
    assert not told.any() and not lead(state)[0].any()


def test_camera_and_tracks_do_not_see_each_others_buttons():
    both = replace(LED, camera=CameraSpec(1.0, 1.0))
    names = [button.name for button in buttons(both)]
    assert len(set(names)) == len(names) <= 64 and both.controls == 2 + CameraSpec.NUMBERS
    pressed = press(both, "camera_right", "let_go")
    assert presses_of("tracks", both, pressed).sum() == presses_of("camera", both, pressed).sum() == 1
    assert not presses_of("tracks", both, torch.ones(1, 2)).any(), "of the game's own keys alone"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random world whose points can be led, exported."""
    folder = tmp_path_factory.mktemp("run")
    world, card = random_world(folder, LED, CARD, lambda world: world.generator.led.weight.mul_(10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.pack.make_adapter_for", lambda *_: FakeGame())
        pack(world, card, export_graphs(world), folder / "led.world", "fp32")
    return folder / "led.world"


WAY = [drawing(0.3 + 0.02 * step, 0.5) for step in range(6)]


def test_a_file_has_a_pen_and_plays_as_torch_does(file):
    world = World.open(file)
    assert world.manifest.game_actions == ("left", "gas")
    assert next(action.name for action in world.manifest.actions if action.condition == "tracks") == "draw"
    reference = Session(world, backend="torch", threads=1)
    other = Session(world, backend="onnxruntime", precision="fp32", threads=1)
    found = compare(reference, other, ticks=36)  # in the next, `let_go` is pressed
    assert max(found.errors.values()) < TOLERANCE and reference.peek()["tracks.seen"].any()


def test_a_led_drive_is_the_same_again_from_replay_and_save(file, tmp_path):
    world = World.open(file)

    def session() -> Session:
        return Session(world, backend="onnxruntime", precision="fp32", threads=1, seed=1)

    led, free = session(), session()
    recorder, frames, saved = Recorder(tmp_path / "led.replay", led, str(file)), [], None
    for step, held in enumerate(WAY):
        frames.append(led.tick(held))
        recorder.tick(led, frames[-1])
        saved = led.snapshot() if step == 2 else saved
    recorder.close()
    assert any(not np.array_equal(free.tick(), frame) for frame in frames)
    again = play_again(open_replay(tmp_path / "led.replay"), session())
    assert all(np.array_equal(played.frame, frame) for played, frame in zip(again, frames, strict=True))
    led.restore(saved)
    assert all(np.array_equal(led.tick(held), frame) for held, frame in zip(WAY[3:], frames[3:], strict=True))


def test_what_the_mouse_draws_with_does_not_press_a_key_of_the_game(file):
    manifest = World.open(file).manifest
    attack = replace(manifest.actions[1], name="attack", keys=("space",))
    controls = Controls([attack, *manifest.actions])
    controls.press("mouse:left", 0.0)
    assert controls.read().actions == {"draw"} and "pad:x" in controls.keys["attack"]

"""A world whose camera can be led: from the game's poses to training, to a file, to play."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from random_world import random_world
from small_recording import recorded
from test_export import CARD, SPEC, FakeGame

from export.onnx import export_graphs
from export.pack import pack
from runtime.cli import main
from runtime.file_world import FileWorld
from runtime.parity import TOLERANCE, compare
from runtime.session import Session
from runtime.world import World
from worldmodel.condition.camera_motion import leading, widened
from worldmodel.condition.native import buttons, controls
from worldmodel.errors import DatasetError, SpecError
from worldmodel.spec import CameraSpec, CodecSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import World as TorchWorld
from worldmodel.tick import next_latent, state_shapes
from worldmodel.train.dataset import Dataset, DatasetInfo, ShardWriter
from worldmodel.train.envs.car_racing import CAR_FROM_TOP, VIEW_UNITS, CarRacing
from worldmodel.train.envs.poses import camera_motion, usual_motion
from worldmodel.train.latents import LatentSet, led_camera
from worldmodel.train.optimisers import optimisers
from worldmodel.train.plan import with_conditions
from worldmodel.train.preview import begin_play
from worldmodel.train.world import Lesson, draw_tiles
from worldmodel.transformer.clip import clip_layer

LED = replace(SPEC, camera=CameraSpec(move=2.0, turn=0.1))


def written(folder: Path, facts: dict[str, list[float]], episode: list[int], adapter: str) -> Dataset:
    """A recording of nothing but facts."""
    folder.mkdir(exist_ok=True)
    info = DatasetInfo(
        env="Fake-v0", adapter=adapter, options={}, tick_hz=10, height=8, width=8, actions=["go"], keys={}, mirror=[],
        facts=list(facts), split="train", seed=0, shard_frames=100,
    )  # fmt: skip
    info.write(folder)
    with ShardWriter(folder / "shard-00000.h5", info) as writer:
        for number, row in zip(episode, np.array(list(facts.values()), np.float32).T, strict=True):
            writer.add(np.zeros((8, 8, 3), np.uint8), np.zeros(1), number, {"captions": ["nothing"]}, row)
    return Dataset(folder)


def apart(dataset: Dataset, places: np.ndarray, chosen: np.ndarray, rows: slice) -> tuple[float, float]:
    """Mean error of the frame before, moved as the camera says, and as it is. places: [frames, height, width, 2]."""
    frames, errors = dataset.read(0, "frames").astype(np.float32), []
    for frame in chosen:
        x, y = places[frame].astype(np.float32).transpose(2, 0, 1)
        moved = cv2.remap(frames[frame - 1], x, y, cv2.INTER_LINEAR, borderValue=(np.nan,) * 3)
        seen = ~np.isnan(moved[rows])
        change = [np.abs(shown[rows] - frames[frame][rows])[seen].mean() for shown in (moved, frames[frame - 1])]
        errors.append(change)
    moved, still = np.mean(errors, 0)
    return float(moved), float(still)


def test_the_camera_of_a_drive_moves_the_frame_before_onto_the_next(tmp_path):
    """CarRacing's picture is the ground seen from above, turned with the car."""
    dataset = recorded(tmp_path, CarRacing(size=64, recolour=False), "car_racing", 60)
    motion, scale = camera_motion(dataset), 64 / VIEW_UNITS
    column, row = np.meshgrid(np.arange(64), np.arange(64))
    right, ahead = (column + 0.5 - 32) / scale, (64 * CAR_FROM_TOP - row - 0.5) / scale
    places = np.zeros((60, 64, 64, 2))
    for frame, (_, went, aside, turned) in enumerate(motion):
        cos, sin = np.cos(turned), np.sin(turned)
        before = aside + right * cos + ahead * sin, went - right * sin + ahead * cos
        places[frame] = np.stack([before[0] * scale + 31.5, 64 * CAR_FROM_TOP - 0.5 - before[1] * scale], -1)
    moving = np.flatnonzero((motion[:, 0] > 0) & (motion[:, 1] > 0.4))
    moved, still = apart(dataset, places, moving, slice(0, 36))  # without the car
    assert len(moving) > 20 and moved < 0.4 * still


def test_the_camera_of_a_doom_room_turns_the_frame_before_onto_the_next(tmp_path):
    """Turned on the spot, a picture is another part of the same panorama, however far away things are."""
    pytest.importorskip("vizdoom")
    from worldmodel.train.envs.vizdoom import VizDoom

    rooms = VizDoom(["health_gathering"])
    dataset = recorded(tmp_path, rooms, "vizdoom", 90)
    rooms.close()
    motion, far = camera_motion(dataset), 80.0  # pixels from the eye to the picture, at 90 degrees
    column, row = np.meshgrid(np.arange(160) - 79.5, np.arange(120) - 59.5)
    places = np.zeros((90, 120, 160, 2))
    for frame, turned in enumerate(motion[:, 3]):
        cos, sin = np.cos(turned), np.sin(turned)
        ahead = far * cos - column * sin
        places[frame] = np.stack([far * (column * cos + far * sin) / ahead + 79.5, far * row / ahead + 59.5], -1)
    turning = np.flatnonzero((np.abs(motion[:, 3]) > 0.03) & (np.hypot(motion[:, 1], motion[:, 2]) < 1))
    moved, still = apart(dataset, places, turning, slice(0, 120))
    assert len(turning) > 5 and moved < 0.5 * still
    ahead = dataset.read(0, "actions")[:, 2] > 0
    assert motion[ahead & (motion[:, 0] > 0), 1].mean() > 1 > np.abs(motion[:, 2]).mean()


def test_a_camera_is_told_as_seen_before_the_tick_and_not_across_episodes(tmp_path):
    facts = {"x": [0, 0, 3, 9], "y": [0, 2, 2, 9], "angle": [90, 350, 10, 0]}
    motion = camera_motion(written(tmp_path, facts, [0, 0, 0, 1], "vizdoom"))
    turned = np.deg2rad([100, -20])
    assert np.allclose(motion[1], [1, 2, 0, turned[0]], atol=1e-5)  # ahead is north
    cos, sin = np.cos(np.deg2rad(350)), np.sin(np.deg2rad(350))
    assert np.allclose(motion[2], [1, 3 * cos, 3 * sin, turned[1]], atol=1e-5)
    assert not motion[[0, 3]].any(), "of an episode's first frame nothing is known"
    mirrored = led_camera(Dataset(tmp_path), CameraSpec(2.0, 0.5), 2)[1]
    assert np.allclose(mirrored[1], [1, 1, 0, -2 * turned[0]], atol=1e-5)


def test_a_recording_without_a_camera_says_so(tmp_path):
    with pytest.raises(DatasetError, match="'crafter' tells of none; known of car_racing, vizdoom"):
        camera_motion(written(tmp_path / "a", {"x": [0.0]}, [0], "crafter"))
    with pytest.raises(DatasetError, match="lacks the fact 'yaw'"):
        camera_motion(written(tmp_path / "b", {"x": [0.0], "y": [0.0]}, [0], "car_racing"))
    with pytest.raises(DatasetError, match="two frames"):
        usual_motion(written(tmp_path / "c", {"x": [0.0], "y": [0.0], "yaw": [0.0]}, [0], "car_racing"))


def test_a_run_learns_its_camera_before_its_world_and_keeps_it(tmp_path):
    data = tmp_path / "data"
    written(data, {"x": [0, 0, 0], "y": [0, 2, 4], "yaw": [0, 0.1, 0.2]}, [0, 0, 0], "car_racing")
    plain = replace(SPEC, environment="car_racing")
    (tmp_path / "spec.json").write_text(plain.to_json())
    assert with_conditions(data, tmp_path, []) == plain
    with pytest.raises(SpecError, match="no condition 'weather'; there is: camera"):
        with_conditions(data, tmp_path, ["weather"])
    made = with_conditions(data, tmp_path, ["camera"])
    assert made.camera == CameraSpec(move=2.0, turn=0.1) and made.controls == 2 + 4
    (tmp_path / "world.safetensors").touch()
    assert with_conditions(data, tmp_path, ["camera"]) == made == WorldSpec.from_json(made.to_json())
    (tmp_path / "spec.json").write_text(plain.to_json())
    with pytest.raises(SpecError, match="new folder"):
        with_conditions(data, tmp_path, ["camera"])
    with pytest.raises(SpecError, match="above 0"):
        CameraSpec(0.0, 1.0)


def test_a_world_without_conditions_is_what_it_was():
    assert "camera" not in json.loads(SPEC.to_json())
    pressed = torch.ones(1, 2)
    assert controls(SPEC, pressed) is pressed and len(buttons(SPEC)) == SPEC.controls == 2
    assert state_shapes(SPEC)["actions"][0] == (1, 2 + 4, 2)


def press(spec: WorldSpec, *names: str) -> torch.Tensor:
    return torch.tensor([[float(button.name in names) for button in buttons(spec)]])


def test_buttons_say_how_the_camera_goes_and_none_says_nothing():
    assert controls(LED, press(LED, "gas")).tolist() == [[0, 1, 0, 0, 0, 0]]
    assert controls(LED, torch.tensor([[0.0, 1.0]])).tolist() == [[0, 1, 0, 0, 0, 0]]  # of the keys alone
    assert controls(LED, press(LED, "camera_still")).tolist() == [[0, 0, 1, 0, 0, 0]]
    told = controls(LED, press(LED, "left", "camera_ahead", "camera_slide_left_half", "camera_right_eighth"))
    assert told.tolist() == [[1, 0, 1, 1, -0.5, 0.125]]


@pytest.mark.parametrize("ahead, right, turn", [(0, 0, 0), (1.7, -0.3, 0.03), (-3.7, 0.2, -0.18), (50, 0, 0)])
def test_a_path_is_followed_to_an_eighth(ahead, right, turn):
    camera = LED.camera
    assert camera is not None
    led, *moved = controls(LED, press(LED, *leading(camera, ahead, right, turn)))[0, 2:].tolist()
    wanted = [min(amount, 1.875) for amount in (ahead / camera.move, right / camera.move, turn / camera.turn)]
    assert led == 1 and np.allclose(moved, wanted, atol=1 / 16 + 1e-6)


PANORAMA = WorldSpec(
    name="panorama", height=16, width=16, tick_hz=25, actions=("blink",), keys={}, environment="none",
    prompt_tokens=1, prompt_dim=2, window=2, camera=CameraSpec(1.0, 0.5),
    codec=CodecSpec(channels=2, down=4, encoder_width=8, encoder_blocks=1, decoder_widths=(8,), decoder_blocks=(1,)),
    generator=GeneratorSpec(dim=32, depth=1, heads=2, action_history=2),
)  # fmt: skip


def panorama(frames: int) -> LatentSet:
    """All that is seen is the camera's heading, as a colour; no key has to do with it."""
    rng = np.random.default_rng(0)
    turn = rng.integers(-1, 2, frames) * (np.arange(frames) > 0)
    heading = torch.from_numpy(np.cumsum(0.5 * turn)).float()
    colour = torch.stack([heading.cos(), heading.sin()], 1)[None, :, :, None, None]
    camera = torch.zeros(1, frames, 4)
    camera[0, 1:, 0], camera[0, :, 3] = 1, torch.from_numpy(turn)
    none = torch.zeros(frames, dtype=torch.int64)
    return LatentSet(
        colour.expand(-1, -1, -1, 4, 4).half(), torch.zeros(1, frames, 1), none, none, none, none,
        torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 1, 2), none.bool(), ~none.bool(), camera,
    )  # fmt: skip


def learned(spec: WorldSpec, latents: LatentSet, draw: torch.Generator) -> TorchWorld:
    """A world after some seconds of training."""
    torch.manual_seed(0)
    world = TorchWorld(spec)
    starts, learning = latents.starts(7), optimisers(world.generator, 1.0)
    for _ in range(150):
        start = starts[torch.randint(len(starts), (32,), generator=draw)]
        lesson = Lesson(latents.clips(spec, start, 8, draw))
        world.zero_grad()
        lesson.loss(world, *draw_tiles(32, 8, draw), clip_layer, draw)["loss"].backward()
        for optimiser in learning:
            optimiser.step()
    return world.eval()


def test_clips_are_led_all_the_time_or_in_a_part_or_never_and_often_without_keys():
    latents, draw = panorama(600), torch.Generator().manual_seed(0)
    latents = replace(latents, actions=torch.ones_like(latents.actions))
    starts = latents.starts(7)[50:]  # the first sinks have no camera that is known
    told = latents.clips(PANORAMA, starts, 8, draw).clip.actions[:, 1:]  # [clips, frames, history, key and camera]
    assert torch.equal(told[:, 1:, 0], told[:, :-1, 1]), "what led to a frame is the same in every later history"
    key, led = told[:, :, 1, 0], told[:, :, 1, 1]
    always, never, changes = (led == 1).all(1), (led == 0).all(1), led.diff(dim=1).abs().sum(1)
    assert (changes[~always & ~never] == 1).all() and (changes > 0).any()
    assert 0.3 < always.float().mean() < 0.6 and 0.2 < never.float().mean() < 0.5
    assert (key[led == 0] == 1).all() and 0.3 < key[led == 1].mean() < 0.7
    assert not latents.with_nobody_leading().clips(PANORAMA, starts, 8, draw).clip.actions[..., 1:].any()


def test_a_trained_world_turns_as_it_is_led_and_plays_when_nobody_leads_it():
    latents, draw = panorama(600), torch.Generator().manual_seed(0)
    world = learned(PANORAMA, latents, draw)
    clip = latents.clips(PANORAMA, latents.starts(7)[::80], 8, draw).clip
    before = begin_play(world, clip, 4, PANORAMA.schedule)

    def turned(*names: str) -> torch.Tensor:
        action = controls(PANORAMA, press(PANORAMA, *names)).expand(len(before["frame"]), -1)
        noise = torch.randn(len(action), PANORAMA.schedule.noises, *PANORAMA.latent_shape, generator=draw)
        latent, after = next_latent(world, before, action, clip.prompt[:, 4], noise)
        assert all(value.isfinite().all() for value in after.values())
        angle = [torch.atan2(frame[:, 1], frame[:, 0]) for frame in (latent.mean((2, 3)), clip.clean[:, 4, :, 0, 0])]
        return (angle[0] - angle[1] + torch.pi) % (2 * torch.pi) - torch.pi

    with torch.no_grad():
        right, left, still = (turned(name) for name in ("camera_right", "camera_left", "camera_still"))
        turned()
    assert (right > left + 0.3).all() and right.mean() > 0.3 and left.mean() < -0.3 and still.mean().abs() < 0.15


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random world whose camera can be led, exported."""
    folder = tmp_path_factory.mktemp("run")
    world, card = random_world(folder, LED, CARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.pack.make_adapter_for", lambda *_: FakeGame())
        pack(world, card, export_graphs(world), folder / "led.world", "fp32")
    return folder / "led.world"


def test_a_file_has_buttons_for_its_camera_and_plays_as_torch_does(file):
    world = World.open(file)
    manifest = world.manifest
    assert manifest.game_actions == ("left", "gas") and manifest.action_names == tuple(b.name for b in buttons(LED))
    reference = Session(world, backend="torch", threads=1)
    found = compare(reference, Session(world, backend="onnxruntime", precision="fp32", threads=1), ticks=60)
    assert max(found.errors.values()) < TOLERANCE

    def frame(*names: str) -> np.ndarray:
        session = Session(world, backend="onnxruntime", precision="fp32", threads=1, seed=1)
        return [session.tick(names) for _ in range(2)][-1]

    shown = [frame(*names) for names in (["gas"], ["gas", "camera_left"], ["gas", "camera_left_half"], ["camera_left"])]
    assert all(not np.array_equal(one, other) for i, one in enumerate(shown) for other in shown[:i])


def test_evaluation_holds_the_games_own_keys_and_leads_nothing(file):
    world, rng = FileWorld(World.open(file), "onnxruntime", 1, "fp32"), np.random.default_rng(0)
    frames = rng.integers(0, 255, (1, world.context, 32, 32, 3), dtype=np.uint8)
    game = world.begin(frames, np.ones((1, world.context, 2), bool), ["a grey road"], 0)
    told = game.states[0]["actions"][0]
    assert world.actions == ("left", "gas") and (told[:, :2] == 1).all() and not told[:, 2:].any()
    game.tick(np.ones((1, 2), bool))
    assert game.states[0]["actions"][0, -1].tolist() == [1, 1, 0, 0, 0, 0]


def test_a_camera_path_is_an_actions_file(file, tmp_path, capsys):
    path = tmp_path / "path.txt"
    path.write_text("camera_ahead\n" * 5 + "camera_ahead camera_left_half\n" * 5 + "camera_still\n")
    played = ("play", file, "--headless", "--backend", "onnxruntime", "--json", "--threads", 1)
    shown = []
    for words in (("--actions", path), ("--ticks", 11), ("--actions", path)):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in (*played, *words)])
        assert not left.value.code
        shown.append(json.loads(capsys.readouterr().out)["frames_crc32"])
    assert shown[0] == shown[2] != shown[1]


def test_a_world_that_knew_no_camera_begins_one_that_does_as_it_was():
    torch.manual_seed(0)
    plain, led = TorchWorld(SPEC), TorchWorld(LED)
    led.generator.load_state_dict(widened(LED, dict(plain.generator.state_dict())))
    told, beside = torch.rand(1, 1, 4, 2), torch.rand(1, 1, 4, 4)
    same = plain.generator.actions(told.flatten(2)), led.generator.actions(torch.cat([told, beside], -1).flatten(2))
    assert torch.allclose(*same, atol=1e-6)
    assert widened(SPEC, {"x": told}) == {"x": told}

"""Real drives against generated ones: a rival that can tell them apart, and a world that learns from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium.envs.box2d", reason="CarRacing needs gymnasium[box2d], in pip install '.[train]'")

from test_train import SMALL

from worldmodel.errors import DatasetError
from worldmodel.train.adversarial import ALONE, JUDGED, MOMENTS, MOST, PLAYED, SETTLED, SHARE, STREAMS, Contest
from worldmodel.train.codec import train_codec
from worldmodel.train.dataset import DatasetInfo, ShardWriter
from worldmodel.train.envs.car_racing import CarRacing
from worldmodel.train.pixel_player import PixelPlayer
from worldmodel.train.plan import plan_world, read_plan
from worldmodel.train.record import Recording, prepare, record_frames
from worldmodel.train.team import Team
from worldmodel.train.world import prepare as prepare_world
from worldmodel.train.world import train_world


def recorded(folder: Path, driver: str) -> Path:
    """120 frames of a small racer."""
    options = {"size": 32, "driver": driver}
    recording = Recording("car_racing", options, frames=120, seed=1, split="train")
    prepare(recording, folder)
    with ShardWriter(folder / "shard-00000.h5", DatasetInfo.read(folder)) as writer:
        for _ in record_frames(CarRacing(**options), writer, 1, 0, 120):
            pass
    return folder


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("driven"), "pixels")


@pytest.fixture(scope="module")
def run(driven, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "small"
    spec = plan_world(driven, out, [*SMALL, "generator.action_history=4"])
    train_codec(spec, driven, out, minutes=0.02, batch=8, frames=120)
    train_world(spec, driven, out, minutes=0.02, batch=2)
    return out


@pytest.fixture
def contest(run, driven):
    latents, world = prepare_world(read_plan(run), driven, run, Team.join())
    return Contest(world, latents, driven, seed=0), world


def test_a_pixel_player_drives_the_real_car_and_does_what_players_do():
    keys, on_road = [], []
    for seed in range(4):
        car = CarRacing(size=96, recolour=False)
        frame = car.reset(seed)
        player = PixelPlayer(tuple(car.scene()["road"]), tuple(car.scene()["grass"]), np.random.default_rng(seed))
        for _ in range(300):
            keys.append(player(frame))
            frame, _ = car.step(keys[-1])
            on_road.append(car.read_facts()[0])
    held = np.mean(keys, 0)
    assert (held > 0.05).all(), "every key is pressed now and then"
    assert np.mean(on_road) > 0.7, "it finds back to the road"


def test_streams_go_on_from_call_to_call_and_carry_gradient_where_they_are_judged(contest):
    match, world = contest
    draw = torch.Generator().manual_seed(0)
    first = match._streams.play(draw)
    assert len(first) == JUDGED and first[0].latents.shape == (PLAYED, len(MOMENTS), *world.spec.latent_shape)
    assert all(moments.latents.requires_grad for moments in first)
    frames = match._streams._state["frame"].clone()
    assert len(frames) == STREAMS
    match._streams._left[:] = 100
    match._streams.play(draw)
    moved = match._streams._state["frame"] != frames
    assert moved.sum() == PLAYED, "some play on, the others wait"
    # The newest moment of the first judged tick is the one-tick-ago of the second.
    assert torch.equal(first[0].latents[:, 0], first[1].latents[:, MOMENTS.index(1)])


def test_nothing_is_judged_right_after_a_change_of_scene(contest):
    match, _ = contest
    draw = torch.Generator().manual_seed(0)
    match._streams.play(draw)
    match._streams._left[:] = 100
    match._streams._since[:] = -SETTLED
    assert all((moments.counts == 0).all() for moments in match._streams.play(draw))


def test_real_moments_lie_in_one_scene(contest):
    match, _ = contest
    driven = match._streams._driven
    keys = match._streams.real(16, torch.Generator().manual_seed(0)).keys
    assert keys.shape[1:] == (4, 4)
    at = torch.arange(len(driven.scene))
    real = match._streams.real(4, torch.Generator().manual_seed(1))
    for moments in real.latents:
        now = [(driven.latents[side].float() == moments[0]).flatten(1).all(1).nonzero() for side in (0, 1)]
        frames = torch.cat(now).flatten().tolist()
        assert any(driven.scene[at[f]] == driven.scene[at[f - max(MOMENTS)]] for f in frames)


def test_the_rival_learns_first_and_then_the_world_learns_from_it(contest):
    match, world = contest
    draw = torch.Generator().manual_seed(0)
    match.step(0, draw)
    assert all(p.grad is None for p in world.generator.parameters())
    assert all(p.grad is not None for p in match.rival.parameters())
    match.optimiser.step()
    for parameter in world.generator.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    before = torch.cat([p.grad.flatten() for p in world.generator.parameters()])
    figures = match.step(ALONE, draw)
    added = torch.cat([p.grad.flatten() for p in world.generator.parameters()]) - before
    assert 0 < added.norm() <= 1.01 * SHARE * before.norm(), "lessons count for more than the rival"
    assert 0 < figures["weight"] <= MOST


def test_a_rival_tells_plain_ground_from_drives(contest):
    match, _ = contest
    draw = torch.Generator().manual_seed(0)
    streams = match._streams

    def plain(draw: torch.Generator):
        real = streams.real(16, draw)
        ground = real.latents.mean((-2, -1), keepdim=True).expand_as(real.latents)
        return [type(real)(ground, real.prompt, real.keys, real.counts)]

    streams.play = plain  # type: ignore[method-assign]
    for number in range(60):
        figures = match.step(-1 - number, draw)
        match.optimiser.step()
    assert figures["told_apart"] > 0.7


def test_train_world_takes_a_driven_recording_and_resumes_its_rival(run, driven):
    out = run.parent / "taken_for_real"
    out.mkdir()
    for name in ("spec.json", "codec.safetensors"):
        (out / name).write_bytes((run / name).read_bytes())
    weights = run / "world.safetensors"
    first = train_world(read_plan(out), driven, out, 0.05, batch=2, init=weights, driven=driven)
    assert first["step"] > 0
    assert any(name.startswith("rival.") for name in torch.load(out / "world.resume.pt")["beside"])
    more = train_world(read_plan(out), driven, out, 0.1, batch=2, init=weights, driven=driven, resume=True)
    assert more["step"] > first["step"]


def test_a_recording_by_a_driver_who_sees_more_is_refused(run, tmp_path):
    other = recorded(tmp_path, "state")
    with pytest.raises(DatasetError, match="--driver pixels"):
        train_world(read_plan(run), other, run, 0.01, batch=2, driven=other)

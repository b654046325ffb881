"""Training: what is resumed goes on, what is given is kept, and bad input is named."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import worldmodel.train.world as training
from export.pack import load_world
from worldmodel.errors import CheckpointError, SpecError
from worldmodel.spec import WorldSpec
from worldmodel.tick import World
from worldmodel.train.codec import displaced, load_codec, train_codec
from worldmodel.train.dataset import Dataset, DatasetInfo, ShardWriter
from worldmodel.train.distil.train import train_distil
from worldmodel.train.latents import SOON, LatentSet, out_of_view, without_looking
from worldmodel.train.mean import average
from worldmodel.train.plan import plan_world, read_plan
from worldmodel.train.playable import TorchWorld
from worldmodel.train.run import Budget, Run, known_code, load_weights
from worldmodel.train.team import Team
from worldmodel.train.world import (
    SETTLING,
    SHORT_RUN,
    Lesson,
    draw_tiles,
    fitted,
    future_moments,
    prepare,
    rare_moments,
    train_world,
)
from worldmodel.transformer.clip import clip_layer
from worldmodel.transformer.generator import FRESH, unpatchify

SMALL = [
    "codec.encoder_width=8", "codec.encoder_blocks=1", "codec.decoder_widths=(8,8)", "codec.decoder_blocks=(1,1)",
    "generator.depth=2", "generator.heads=2", "generator.dim=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two short episodes of a square that moves right while 'go' is held, on a ground that changes colour."""
    folder = tmp_path_factory.mktemp("recording")
    info = DatasetInfo(
        env="Square-v0", adapter="none", options={}, tick_hz=10, height=32, width=32, actions=["go", "back"],
        keys={"go": ["right"], "back": ["left"]}, mirror=[["go", "back"]], facts=["x"], split="train", seed=0,
        shard_frames=200,
    )  # fmt: skip
    info.write(folder)
    rng = np.random.default_rng(0)
    with ShardWriter(folder / "shard-00000.h5", info) as shard:
        for episode in range(2):
            x = 8
            for frame in range(100):
                go = frame > 0 and bool(rng.random() < 0.5)
                x = (x + 2 * go) % 24
                red = frame >= 50
                picture = np.full((32, 32, 3), (200, 30, 30) if red else (30, 30, 200), np.uint8)
                picture[12:20, x : x + 8] = 255
                said = {"captions": ["a red ground" if red else "a blue ground"]}
                shard.add(picture, np.array([go, False]), episode, said, np.array([x], np.float32))
    return folder


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory):
    """A run folder with a codec and a world, trained for a moment."""
    out = tmp_path_factory.mktemp("runs") / "square"
    spec = plan_world(recording, out, SMALL)
    train_codec(spec, recording, out, minutes=0.02, batch=8, frames=120)
    train_world(spec, recording, out, minutes=0.02, batch=2)
    return out


def test_a_resumed_run_goes_on_from_its_step_and_keeps_its_history(run, recording):
    before = json.loads((run / "world.json").read_text())
    more = before[-1]["seconds"] / 60 + 0.02
    figures = train_world(read_plan(run), recording, run, minutes=more, batch=2, resume=True)
    after = json.loads((run / "world.json").read_text())
    assert after[: len(before)] == before and figures["step"] > before[-1]["step"]


def test_a_spent_budget_changes_nothing(run, recording):
    weights = (run / "world.safetensors").read_bytes()
    train_world(read_plan(run), recording, run, minutes=0.001, batch=2, resume=True)
    assert (run / "world.safetensors").read_bytes() == weights


def test_the_time_that_a_training_was_stopped_for_is_no_training(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("worldmodel.train.run.time.monotonic", lambda: clock[0])
    model, ends = torch.nn.Linear(1, 1), []
    run = Run(tmp_path, "tiny", model, [torch.optim.SGD(model.parameters(), 0.1)], Budget(0.1), Team.join())

    def step(number: int) -> dict[str, torch.Tensor]:
        clock[0] += 1000 if number == 3 else 1
        ends.append(clock[0])
        loss = model(torch.ones(1)).sum()
        loss.backward()
        return {"loss": loss.detach()}

    assert run.loop(step)["seconds"] == 6 and ends == [1, 2, 3, 1003, 1004, 1005, 1006]


def test_a_mean_of_weights_lies_between_them_and_knows_their_codec(tmp_path):
    names = {name: tmp_path / f"{name}.safetensors" for name in ("after", "before", "mean", "other", "wide")}
    save_file({"w": torch.ones(2)}, names["after"], {"codec": "one"})
    save_file({"w": torch.zeros(2, dtype=torch.float16)}, names["before"], {"codec": "one"})
    average(names["after"], names["before"], 0.25, names["mean"])
    assert torch.equal(load_file(names["mean"])["w"], torch.full((2,), 0.75)) and known_code(names["mean"]) == "one"
    save_file({"w": torch.ones(2)}, names["other"], {"codec": "two"})
    save_file({"w": torch.ones(3)}, names["wide"], {"codec": "one"})
    for other, said in (("other", "different codecs"), ("wide", "different networks")):
        with pytest.raises(CheckpointError, match=said):
            average(names["after"], names[other], 0.5, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_clips_asked_to_switch_change_scene_where_it_can_be_learned(run, recording):
    latents, _ = prepare(read_plan(run), recording, run, Team.join())
    starts = latents.starts(19, switch_after=SETTLING)
    drawn = latents.clips(read_plan(run), starts, 20, torch.Generator().manual_seed(0))
    assert len(starts) and (drawn.scene[:, 1 + SETTLING] != drawn.scene[:, -1]).all()
    assert drawn.renamed.any() and not drawn.renamed.all()
    clip, newest = drawn.clip, drawn.scene == drawn.scene[:, -1:]
    switch = (drawn.scene[:, 1:] != drawn.scene[:, :-1]).float().argmax(1) + 1
    at = torch.arange(len(starts))
    assert (clip.fresh[at, switch] == 1).all(), "a prompt is news from the frame of the switch"
    assert (clip.clean_fresh[drawn.renamed] >= (~newest[drawn.renamed]).float()).all(), "a recached history hears it"
    assert torch.equal(clip.clean_fresh[~drawn.renamed], clip.fresh[~drawn.renamed])


def test_recoloured_drives_give_the_target_and_the_prompt_of_a_clip_but_not_its_history(run, recording):
    """The history is in the old colours, as at a prompt switch, or in ones that drifted part of the way to them."""
    spec = read_plan(run)
    latents, _ = prepare(spec, recording, run, Team.join())
    twin = replace(latents, latents=-latents.latents, prompts=latents.prompts + 1)
    assert latents.same_drives(twin) and not latents.same_drives(replace(twin, actions=1 - twin.actions))
    starts = latents.starts(19)[:30]  # of one scene each
    drawn = latents.clips(spec, starts, 20, torch.Generator().manual_seed(0), recoloured=twin)
    assert drawn.renamed.all() and torch.equal(drawn.clip.fresh, drawn.clip.clean_fresh)
    assert (drawn.clip.prompt == drawn.clip.clean_prompt).all() and drawn.clip.prompt.min() > latents.prompts.min()
    # The twin being the negative, each history is a multiple of its target: -1 in the old colours, 1 in the new ones.
    history, target = drawn.clip.clean.flatten(2), drawn.target.flatten(2)
    kept = (history * target).sum(2) / target.square().sum(2)
    switched = drawn.clip.fresh.amin(1) == 1
    assert 8 < switched.sum() < 28 and (drawn.clip.fresh.amax(1)[~switched] == 0).all()
    turning, drifted, at_once = kept[switched][:, 1:], kept[~switched][:, 1:], kept[switched][:, 1] < -0.99
    assert torch.allclose(turning, turning[:, :1]) and at_once.any() and not at_once.all(), "some are on their way"
    assert (drifted > -0.01).all() and (drifted < 1).any() and torch.allclose(drifted, drifted[:, :1])
    # A player's sink shows what was before a switch for as long as that is news, and what came of it from then on.
    torch.testing.assert_close(kept[:, 0], 1 - 2 * switched.float())


def test_a_sink_of_an_earlier_scene_is_met_only_while_the_new_one_is_news(run, recording):
    spec = read_plan(run)
    latents, _ = prepare(spec, recording, run, Team.join())
    numbered = latents.latents.clone()
    numbered[:, :, 0, 0, 0] = latents.scene  # a frame says which scene it is of
    latents = replace(latents, latents=numbered)
    starts = latents.starts(9)
    drawn = latents.clips(spec, starts, 10, torch.Generator().manual_seed(0))
    before = drawn.clip.clean[:, 0, 0, 0, 0] != drawn.scene[:, 1]
    since = starts - latents.scene_first[starts]
    news = (latents.scene_first[starts] > latents.first[starts]) & (since < FRESH)
    assert (before <= news).all() and before.any() and (news & ~before).any()


def test_no_doubt_is_drawn_of_the_colours_that_a_prompt_asks_for(run, recording, monkeypatch):
    spec = read_plan(run)
    latents, world = prepare(spec, recording, run, Team.join())
    draw, weights = torch.Generator().manual_seed(0), []
    score = training.energy_score
    monkeypatch.setattr(training, "energy_score", lambda *given: weights.append(given[-1]) or score(*given))
    for twin in (None, latents):
        drawn = latents.clips(spec, latents.starts(19)[:4], 20, draw, recoloured=twin)
        lesson = Lesson(drawn, recoloured=twin is not None)
        lesson.loss(world, torch.ones(4, 40), None, clip_layer, draw)
    ordinary, recoloured = weights
    assert (ordinary > 0).all() and not recoloured.any()


def test_later_turns_on_a_clip_have_own_errors_as_history_but_a_recorded_sink_and_beginning(run, recording):
    spec = read_plan(run)
    latents, world = prepare(spec, recording, run, Team.join())
    draw = torch.Generator().manual_seed(0)
    lesson = Lesson(latents.clips(spec, latents.starts(19)[:8], 20, draw))
    first = lesson.loss(world, *draw_tiles(8, 20, draw), clip_layer, draw)
    assert "x0" in first and lesson.own is not None and first["loss"].requires_grad
    assert torch.equal(lesson.own[:, : 1 + SETTLING], lesson.clip.clean[:, : 1 + SETTLING])
    assert not torch.equal(lesson.own, lesson.clip.clean) and not lesson.own.requires_grad
    assert "x0_own" in lesson.loss(world, *draw_tiles(8, 20, draw), clip_layer, draw)


def test_a_roll_out_as_history_is_the_worlds_own_for_a_few_ticks_at_a_time(run, recording):
    spec = read_plan(run)
    latents, world = prepare(spec, recording, run, Team.join())
    load_weights(world.generator, run / "world.safetensors")
    draw = torch.Generator().manual_seed(0)
    lesson = Lesson(latents.clips(spec, latents.starts(19)[:4], 20, draw))
    lesson.roll_out(world, draw)
    recorded = (lesson.own == lesson.clip.clean).flatten(2).all(2)[0]
    begin = spec.window + 1
    assert recorded[: begin + 1].all() and recorded[begin :: SHORT_RUN + 1].all() and recorded.sum() == begin + 3


def test_two_futures_are_learned_from_histories_of_their_own(run, recording):
    spec = read_plan(run)
    latents, world = prepare(spec, recording, run, Team.join())
    load_weights(world.generator, run / "world.safetensors")
    draw = torch.Generator().manual_seed(0)
    lesson = Lesson(latents.clips(spec, latents.starts(19)[:3], 20, draw))
    lesson.roll_out_futures(world, draw)
    first, second, begin = lesson.own[::2], lesson.own[1::2], spec.window + 1
    assert torch.equal(first[:, : begin + 1], second[:, : begin + 1])
    assert torch.equal(first[:, : begin + 1], lesson.target[:, : begin + 1])
    assert (first[:, begin + 1 :] != second[:, begin + 1 :]).flatten(2).any(2).all()
    levels = lesson.levels(draw)
    found = lesson.loss(world, *levels, clip_layer, draw)
    found["loss"].backward()
    assert found["spread_ahead"] > 0 and world.generator.head.weight.grad.abs().sum() > 0
    # Each draw is made from its own history: with one for both they differ by their noise alone.
    lesson._history = lambda draw: replace(lesson.clip, clean=lesson.own)

    def spread():
        torch.manual_seed(1)
        return lesson.loss(world, *levels, clip_layer, draw)["spread_ahead"]

    apart = spread()
    lesson.own[1::2] = lesson.own[::2]
    assert spread() < apart


def test_futures_are_learned_from_the_slow_numbers_that_made_them(run, recording):
    spec = read_plan(run)
    spec = replace(spec, generator=replace(spec.generator, slow=2))
    latents, world = prepare(spec, recording, run, Team.join())
    load_weights(world.generator, run / "world.safetensors")
    draw = torch.Generator().manual_seed(0)
    lesson = Lesson(latents.clips(spec, latents.starts(19)[:3], 20, draw))
    lesson.roll_out_futures(world, draw)
    assert lesson.slow.shape[:3] == (3, 40, 2)
    began = spec.window + 2
    first, second = lesson.slow[..., 0, 0].unflatten(1, (2, 20)).unbind(1)
    changes = first[:, began:].diff(dim=1)
    assert 0 < changes.abs().mean() < 0.4 * (first - second)[:, began:].abs().mean()
    told = []
    world.generator.embed.register_forward_pre_hook(lambda module, given: told.append(given[0].detach()))
    lesson.loss(world, *lesson.levels(draw), clip_layer, draw)
    noisy = unpatchify(told[0], spec.generator.patch, world.generator.grid)[:, 20:, :2, 0, 0]
    torch.testing.assert_close(noisy, torch.stack([first, second], 1).flatten(0, 1), rtol=0.01, atol=0.01)


def test_training_the_decoder_alone_leaves_the_latents_as_they_are(run, recording, tmp_path):
    pictures = torch.rand(2, 3, 32, 32)
    latent = load_codec(read_plan(run), run).encode(pictures)
    train_codec(read_plan(run), recording, run, minutes=0.02, batch=8, frames=120, decoder_only=True)
    better = load_codec(read_plan(run), run)
    assert torch.equal(better.encode(pictures), latent)
    assert not torch.equal(better.decode(latent), World(read_plan(run)).codec.decode(latent))
    since = shutil.copytree(run, tmp_path / "run")
    codec = load_file(since / "codec.safetensors")
    save_file(codec | {"encoder.0.bias": codec["encoder.0.bias"] + 0.1}, since / "codec.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.safetensors reads the latents of another codec\.safetensors"):
        load_codec(read_plan(run), since)


def test_a_codec_goes_on_from_an_earlier_one(run, recording, tmp_path):
    spec = plan_world(recording, tmp_path / "run", SMALL)
    train_codec(spec, recording, tmp_path / "run", minutes=0.001, batch=8, frames=120, init=run / "codec.safetensors")
    pictures = torch.rand(2, 3, 32, 32)
    before, after = (load_codec(spec, folder).encode(pictures) for folder in (run, tmp_path / "run"))
    assert 0 < (after - before).square().mean() < 0.01 * before.square().mean()
    with pytest.raises(CheckpointError, match="leave out --init"):
        train_codec(spec, recording, run, minutes=0.01, decoder_only=True, init=run / "codec.safetensors")


def test_displaced_latents_are_those_of_the_displaced_picture():
    torch.manual_seed(0)
    codec = World(plan_of(height=120, width=160)).codec  # 120 rows of pixels in 128 rows of cells
    ramp = torch.linspace(0, 1, 160).expand(120, 160) + torch.linspace(0, 2, 120)[:, None]
    pictures = ramp.expand(32, 3, -1, -1)
    moved, latents, seen = displaced(codec, pictures, F.avg_pool2d(codec.padded(pictures), 8))
    whole = F.avg_pool2d(seen.float().expand(-1, 3, -1, -1), 8) == 1
    inner = -F.max_pool2d(-whole.float(), 3, stride=1, padding=1) > 0  # cells whose neighbours are known, too
    assert inner.sum() > 0.3 * inner.numel()
    assert (moved - pictures).abs()[inner.repeat_interleave(8, 2).repeat_interleave(8, 3)].mean() > 0.05
    assert torch.allclose(F.avg_pool2d(moved, 8)[inner], latents[:, :, :15][inner], atol=1e-3)


def test_a_codec_for_moving_worlds_is_trained_and_told_how_well_its_latents_move(recording, tmp_path):
    spec = plan_world(recording, tmp_path / "run", [*SMALL, "codec.equivariant=True"])
    figures = train_codec(spec, recording, tmp_path / "run", minutes=0.02, batch=8, frames=120)
    assert 0 < figures["displaced_psnr"] < 60 and (tmp_path / "run" / "codec.safetensors").exists()


def plan_of(height: int, width: int) -> WorldSpec:
    return WorldSpec("plain", height, width, 10, ("go",), {}, "none")


def test_a_world_that_moves_and_has_a_conv_head_goes_on_from_one_without(run, recording):
    spec = read_plan(run)
    sizes = replace(spec.generator, reach=(1, 2), conv_head=4)
    before, moving = World(spec), World(replace(spec, generator=sizes))
    load_weights(before.generator, run / "world.safetensors")
    load_weights(moving.generator, run / "world.safetensors", partial(fitted, moving))
    channels = spec.codec.channels
    hidden = torch.randn(1, 3, spec.tokens, spec.generator.dim)
    frame = torch.randn(1, 3, spec.tokens, channels * spec.generator.patch**2)
    carry = torch.ones(1, 3, 1, frame.shape[-1])
    plain, found = (world.generator.made(hidden, carry, [frame, frame], frame) for world in (before, moving))
    assert (plain - found).square().mean() < 0.01 * plain.square().mean()

    moved = moving.generator.moved
    moved.whence.bias.data.view(3, 5, -1)[1, 3] = 100  # every cell shows what its right neighbour showed
    picture = unpatchify(frame, spec.generator.patch, moved.grid)
    assert torch.allclose(
        unpatchify(moved(hidden, frame), spec.generator.patch, moved.grid)[..., :-1], picture[..., 1:], atol=1e-4
    )


@torch.no_grad()
def test_a_world_whose_prompts_skip_goes_on_from_one_whose_do_not_and_then_hears_them_whatever_keys_are_held(run):
    spec = read_plan(run)
    before, skipping = World(spec), World(replace(spec, generator=replace(spec.generator, prompt_skip=True)))
    load_weights(before.generator, run / "world.safetensors")
    load_weights(skipping.generator, run / "world.safetensors", partial(fitted, skipping))
    keys = torch.randint(0, 2, (1, 3, spec.generator.action_history, spec.controls)).float()
    prompts = torch.randn(2, 1, 3, spec.prompt_tokens, spec.prompt_dim)

    def told(world: World, keys: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        generator = world.generator
        return generator.shared_modulation(generator.condition(torch.ones(1, 3), keys, prompt, torch.ones(1, 3)))

    torch.testing.assert_close(told(before, keys, prompts[0]), told(skipping, keys, prompts[0]))
    torch.nn.init.zeros_(skipping.generator.adaln.weight[:, : spec.generator.dim])
    torch.nn.init.normal_(skipping.generator.adaln.weight[:, spec.generator.dim :])
    torch.testing.assert_close(*[told(skipping, held, prompts[0]) for held in (keys, 1 - keys)])
    assert not torch.equal(*[told(skipping, keys, prompt) for prompt in prompts])


def test_weights_of_another_size_are_refused_by_name(run):
    other = World(WorldSpec.from_json((run / "spec.json").read_text().replace('"depth": 2', '"depth": 3')))
    with pytest.raises(CheckpointError, match=r"blocks\.2\."):
        load_weights(other.generator, run / "world.safetensors")


def test_weights_are_refused_beside_a_codec_that_was_trained_since(run, tmp_path):
    """Its latents are others: the world would show noise, and heads tell any reward."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("decoder.*"))  # that one would be taken for the codec
    assert TorchWorld(folder).spec == read_plan(run)
    codec = load_file(folder / "codec.safetensors")
    save_file(codec | {"encoder.0.bias": codec["encoder.0.bias"] + 0.1}, folder / "codec.safetensors")
    for load in (TorchWorld, load_world):
        with pytest.raises(CheckpointError, match=r"world\.safetensors was trained with another codec.*--init"):
            load(folder)
    save_file(codec | {"decoder.0.bias": codec["decoder.0.bias"] + 0.1}, folder / "codec.safetensors")
    load_world(folder)  # pictures change, latents do not


def test_a_changed_spec_needs_a_new_folder(run, recording):
    with pytest.raises(SpecError, match="new folder"):
        plan_world(recording, run, ["window=4"])


def test_an_unknown_field_is_answered_with_the_known_ones(recording, tmp_path):
    with pytest.raises(SpecError, match="depth"):
        plan_world(recording, tmp_path / "run", ["generator.deepness=4"])


@pytest.mark.parametrize("seed", range(20))
def test_noise_levels_rise_within_a_tile_and_every_frame_has_one(seed):
    sigma, tile_start = draw_tiles(6, 20, torch.Generator().manual_seed(seed))
    assert ((sigma >= 0.05) & (sigma <= 1)).all()
    if tile_start is not None:
        same = tile_start[:, 1:] == tile_start[:, :-1]
        steps = sigma.diff(dim=1)
        assert (steps[same] > -0.5).all() and (tile_start <= torch.arange(20)).all()


def test_a_student_is_a_run_folder_and_goes_on_with_its_critic(run, recording, tmp_path):
    out = tmp_path / "student"
    told = ("self-forcing", run, recording, out)
    first = train_distil(*told, minutes=0.02, batch=2, changes=["sink_keep=0.9"])
    kept = torch.load(out / "world.resume.pt", weights_only=True)
    assert any(name.startswith("critic.") for name in kept["beside"])
    more = train_distil(*told, minutes=first["seconds"] / 60 + 0.02, batch=2, resume=True)
    assert more["step"] > first["step"] and read_plan(out).sink_keep == 0.9
    load_weights(World(read_plan(out)).generator, out / "world.safetensors")
    assert load_codec(read_plan(out), out).encode(torch.rand(1, 3, 32, 32)).isfinite().all()
    with pytest.raises(SpecError, match="own folder"):
        train_distil("self-forcing", run, recording, run, minutes=0.02)
    with pytest.raises(SpecError, match="rolling-forcing"):
        train_distil("no-such", run, recording, out, minutes=0.02)


def test_two_processes_train_one_world(tmp_path: Path) -> None:
    """Each draws its own numbers; both have the same weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).parent / "two_trainers.py"
    here = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(script), str(tmp_path)], env=here, check=True, timeout=240, capture_output=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not torch.equal(first["begun"], second["begun"])
    assert torch.equal(first["ended"], second["ended"]) and not torch.equal(first["ended"], first["begun"])


def test_clips_are_told_when_what_the_game_is_about_stays_away():
    away = torch.zeros(200, dtype=torch.bool)
    away[10:13] = away[20:92] = away[195:] = True  # for a moment, for long, until the end of an episode
    none = torch.zeros(200, dtype=torch.int64)
    latents = LatentSet(
        torch.zeros(1, 200, 1, 2, 2).half(), torch.zeros(1, 200, 1), none, none, none, none,
        torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 1, 2), away, ~none.bool(),
    )  # fmt: skip
    assert latents.astray().nonzero().flatten().tolist() == [*range(20, 92 - SOON), *range(195, 200)]
    episodes = (torch.arange(200) >= 60).long()
    assert replace(latents, episode=episodes).astray()[20:92].nonzero().flatten().tolist() == list(range(40))
    length = 5
    finds = [start for start in range(200 - length + 1) if any(start <= last < start + length - 1 for last in (12, 91))]
    assert latents.found(length).tolist() == finds


def test_clips_in_which_everything_has_been_let_go_for_long_are_found():
    keys = torch.zeros(2, 60, 2)
    keys[:, [3, 20], 1] = 1
    episode = (torch.arange(60) >= 40).long()
    first, none = 40 * episode, torch.zeros(60, dtype=torch.int64)
    latents = LatentSet(
        torch.zeros(2, 60, 1, 2, 2).half(), keys, episode, first, none, none,
        torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 1, 2), none.bool(), ~none.bool(),
    )  # fmt: skip
    assert latents.longest == 40
    lasts = (latents.let_go(5, ticks=10) + 4).tolist()
    assert lasts == [*range(13, 20), *range(30, 40), *range(50, 60)]


def test_futures_are_those_of_keys_that_nobody_pressed_for_what_was_to_be_seen():
    none, blind = torch.zeros(60, dtype=torch.int64), torch.zeros(60, dtype=torch.bool)
    blind[20:35] = True
    keys = torch.zeros(1, 60, 2)
    keys[:, :12, 0] = 1
    latents = LatentSet(
        torch.zeros(1, 60, 1, 2, 2).half(), keys, none, none, none, none,
        torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 1, 2), none.bool(), blind,
    )  # fmt: skip
    length, begin = 10, 3
    starts = future_moments(latents, length, begin).tolist()
    assert starts == list(range(20 - begin, 35 - length + 1))
    _, (_, let_go) = rare_moments(latents, length, 2.0, begin)
    assert let_go.tolist() == starts, "no key has been held for five ticks: of what is rare, too, only such clips"
    *_, (_, unguided) = rare_moments(latents, length, 2.0)
    assert unguided.tolist() == list(range(20 - 1, 35 - length + 1))
    assert len(future_moments(replace(latents, open_loop=none.bool()), length, begin)) == 60 - length + 1


def test_clips_are_cut_from_one_scene_to_another_where_no_episode_goes_there(run):
    frame = torch.arange(80).float()[None, :, None, None, None].expand(-1, -1, 1, 2, 2).half()
    scene = (torch.arange(80) >= 40).long()
    first, none = 40 * scene, torch.zeros(80, dtype=torch.int64)
    latents = LatentSet(
        frame, torch.zeros(1, 80, 2), scene, first, scene, first, torch.tensor([[0] * 4, [1] * 4]),
        torch.tensor([0.0, 1.0])[:, None, None], none.bool(), ~none.bool(),
    )  # fmt: skip
    assert latents.separate and not replace(latents, captions=torch.zeros(2, 4, dtype=torch.int64)).separate
    assert not replace(latents, first=none).separate, "an episode that goes from one to the other shows how that looks"
    start, frames = torch.tensor([5, 50, 8, 47]), 12
    drawn = latents.clips(read_plan(run), start, frames, torch.Generator().manual_seed(3), cut=True)
    shown, other = drawn.target[:, :, 0, 0, 0], start.roll(1)
    for clip in range(4):
        (at,) = drawn.cut[clip].nonzero().flatten().tolist()
        assert 3 <= at <= frames - 4
        assert shown[clip, 1:].tolist() == [
            *range(start[clip], start[clip] + at - 1), *range(other[clip] + at - 1, other[clip] + frames - 1)
        ]  # fmt: skip
        told = (torch.arange(frames) >= at).float()
        assert (drawn.clip.prompt[clip, :, 0, 0] == (told if start[clip] < 40 else 1 - told)).all()
        assert (drawn.clip.fresh[clip] == told).all()
    lesson = Lesson(drawn)
    assert (lesson.counts[drawn.renamed] == 0)[(drawn.scene != drawn.scene[:, -1:])[drawn.renamed]].all()


def test_a_recording_that_does_not_tell_what_is_in_view_misses_nothing(recording):
    assert not out_of_view(Dataset(recording)).any()
    assert without_looking(Dataset(recording)).all()


def test_a_worn_history_leads_to_what_was_really_there(run):
    frame = torch.arange(40).float()[None, :, None, None, None].expand(-1, -1, 1, 2, 2).half()
    none = torch.zeros(40, dtype=torch.int64)
    latents = LatentSet(
        frame, torch.zeros(1, 40, 2), none, none, none, none, torch.zeros(1, 4, dtype=torch.int64),
        torch.zeros(1, 1, 2), none.bool(), ~none.bool(),
    )  # fmt: skip
    worn = replace(latents, latents=frame + 100)
    drawn = latents.clips(read_plan(run), torch.tensor([5, 20]), 8, torch.Generator().manual_seed(0), None, worn)
    assert (drawn.target[:, 1:, 0, 0, 0] == torch.arange(7) + torch.tensor([[5], [20]])).all()
    assert (drawn.clip.clean[:, 1:] == drawn.target[:, 1:] + 100).all()
    assert (drawn.clip.clean[:, 0] == drawn.target[:, 0]).all(), "the sink was never worn"

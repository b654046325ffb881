"""Imported checkpoints are distilled from prompts alone: as at play, into what can be imported again."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_import_checkpoint import run as command
from test_import_checkpoint import text_encoder

from runtime.session import Session
from runtime.world import World
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.errors import CheckpointError, DatasetError, SpecError
from worldmodel.families.importing import plan_import
from worldmodel.families.wan_transformer import WanSpec, WanTransformer
from worldmodel.families.wan_world import WanWorld, WanWorldSpec
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.plan import FlowTable
from worldmodel.schedule.rolling import Rolling
from worldmodel.train.distil.imported import roll_out
from worldmodel.train.distil.imported.long_tuning import Streamed
from worldmodel.train.distil.imported.plan import plan_student, plan_teacher
from worldmodel.train.distil.imported.prompts import Prompts, read_lines
from worldmodel.train.distil.imported.roll_out import Played, begun, play_on
from worldmodel.train.distil.imported.rolling_forcing import Rolled
from worldmodel.train.distil.imported.scores import denoised, reader
from worldmodel.train.distil.imported.setting import alone
from worldmodel.train.distil.imported.train import IMPORTED, load, make, prepare, train_distil_checkpoint
from worldmodel.train.distil.train import plan_student as plan_native
from worldmodel.train.run import Budget, Run
from worldmodel.train.team import Team

torch.set_num_threads(1)
SMALL = WanSpec(dim=24, ffn_dim=32, heads=2, layers=2, freq_dim=16, in_channels=4, out_channels=4, text_dim=8)
SIZES = ["--heads", "2", "--height", "4", "--width", "6"]
CONFIG = {"num_heads": 2, "latent_height": 4, "latent_width": 6}
TABLE = FlowTable()
FEW = FewStep(TABLE.warp((1000, 750, 500)))
SINK, CLIPS = SinkWindow(window=8, sink=2, chunk=2), SinkWindow(window=8, chunk=8)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(seed: int = 0, width: float = 0.2) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(part) * width for name, part in WanTransformer(SMALL).state_dict().items()}


def world(cache, schedule=FEW, seed=0, **others) -> WanWorld:
    spec = {"transformer": SMALL, "rows": 4, "columns": 6, "prompt_rows": 5, **others}
    made = WanWorld(WanWorldSpec("small", cache=cache, schedule=schedule, **spec))
    made.transformer.load_state_dict(weights(seed))
    return made.eval().requires_grad_(False)


def embedded(text: str) -> torch.Tensor:
    return torch.randn(1, 5, 8, generator=draws(sum(map(ord, text))))


PROMPTS = Prompts(("snow", "lava", "a meadow"), embedded, embedded(""))


def setting(student=None, teacher=None, lora=None, frames=4, batch=2, rate=1e-3):
    torch.manual_seed(0)
    given = student or world(SINK), teacher or world(CLIPS, seed=1, guidance=5.0)
    return prepare(*given, PROMPTS, lora, frames, batch, rate)


# -- roll-outs and scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [SINK, EmaSink(window=6, sink=2, chunk=2), RollingSink(window=8, sink=2, chunk=2)])
def test_a_roll_out_that_is_left_at_the_last_pass_is_the_stream_of_play(cache, monkeypatch):
    given = setting(world(cache), batch=1)
    stream, prompt = given.play(), embedded("snow")
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape[0], 0.999))
    made, left = play_on(given, stream, begun(stream, prompt), prompt, 10, draws(3))
    state, draw, played = begun(stream, prompt), draws(3), []
    with torch.no_grad():
        for _ in range(5):
            block, state = stream.tick(state, given.noise(stream.noises(stream.plan(state)) * 2, draw))
            played.append(block)
    assert torch.equal(made.detach(), torch.cat(played, 1))
    assert set(left) == set(state) and all(torch.equal(left[name], state[name]) for name in state)
    assert not any(part.requires_grad for part in left.values())


def test_blocks_are_left_at_one_pass_each_which_alone_has_gradient(monkeypatch):
    given = setting()
    passes = []

    def noted(*args):
        passes.append(args[-1])
        return graded(*args)

    graded = roll_out.graded
    monkeypatch.setattr(roll_out, "graded", noted)
    seen = set()
    for seed in range(12):
        passes.clear()
        sample = Played(given)(draws(seed))
        assert len(passes) == 2 and len(set(passes)) == 1 and sample.made.requires_grad
        seen.add(passes[0][0])
    assert seen == set(FEW.levels)
    first, last = sample.made.split(2, 1)
    found = [torch.autograd.grad(part.sum(), given.student.transformer.blocks[0].self_attn.k.weight, retain_graph=True)
             for part in (first, last)]  # fmt: skip
    assert all(part[0].abs().sum() > 0 for part in found)


def test_without_gradient_nothing_is_remembered_of_a_roll_out():
    with torch.no_grad():
        assert not Played(setting())(draws()).made.requires_grad


def test_blocks_in_flight_are_judged_once_each():
    given = setting(
        world(RollingSink(window=10, sink=2, chunk=2, attention=8), Rolling(TABLE.warp((1000, 600, 300)))), frames=8
    )
    levels = set()
    for seed in range(6):
        sample = Rolled(given)(draws(seed))
        assert sample.made.shape == (2, 8, 4, 4, 6) and sample.made.requires_grad
        levels.add(tuple(sample.made.detach().flatten().tolist()[:3]))
    assert len(levels) > 1
    with pytest.raises(SpecError, match="nothing rolls: use self-forcing"):
        Rolled(setting())
    assert [level for (level,) in alone(Rolling(TABLE.warp((1000, 600, 300)))).plan(0).rows] == list(
        TABLE.warp((1000, 600, 300))
    )


def test_a_clip_is_read_in_blocks_by_a_causal_network_and_whole_by_one_whose_block_it_is():
    clean, other = torch.randn(2, 1, 8, 4, 4, 6, generator=draws())
    noisy, prompt = torch.randn(1, 8, 4, 4, 6, generator=draws(1)), embedded("snow")
    for cache, reaches in ((SINK, [0, 1, 0, 0]), (CLIPS, [0, 0, 0, 0])):
        given = world(cache)
        stream = reader(given.spec, given.transformer, 8)
        changed = clean.clone()
        changed[:, 2:4] = other[:, 2:4]  # the second block's past is told otherwise
        one, two = (denoised(stream, told, noisy, 0.5, prompt, prompt) for told in (clean, changed))
        differs = [not torch.equal(a, b) for a, b in zip(one.split(2, 1), two.split(2, 1), strict=True)]
        assert differs == ([False, False, True, True] if any(reaches) else [False] * 4)
        later = noisy.clone()
        later[:, 6:] += 1
        moved = denoised(stream, clean, later, 0.5, prompt, prompt)
        assert torch.equal(moved[:, :6], one[:, :6]) == (cache is SINK)
    with pytest.raises(SpecError, match=r"--frames 7: must be a multiple of small's blocks of 2 frames"):
        reader(world(SINK).spec, given.transformer, 7)


def test_a_guided_teachers_x0_goes_beyond_the_conditional_one_as_published():
    given = world(CLIPS)
    clip, prompt, blank = torch.randn(1, 8, 4, 4, 6, generator=draws()), embedded("snow"), embedded("")
    bare = reader(given.spec, given.transformer, 8)
    told, untold = (denoised(bare, clip, clip, 0.6, text, blank) for text in (prompt, blank))
    made = denoised(reader(given.spec, given.transformer, 8, guidance=3.0), clip, clip, 0.6, prompt, blank)
    assert torch.allclose(made, told + 3 * (told - untold), atol=1e-4)


def test_streams_go_on_turn_with_the_prompt_once_and_begin_anew():
    asked = []

    def never_the_same(text: str) -> torch.Tensor:
        asked.append(text)
        return embedded(text + "!" * len(asked))

    given = replace(setting(frames=6, batch=1), prompts=replace(PROMPTS, encode=never_the_same))
    streamed = Streamed(given, longest=14)  # clips of 6, 4 and 4 new frames
    with torch.no_grad():
        samples = [streamed(draws(seed)) for seed in range(6)]
    assert [int(sample.counts.sum()) for sample in samples] == [6, 4, 4] * 2
    assert torch.equal(samples[1].made[:, :2], samples[0].made[:, -2:])
    turned = [not torch.equal(one.prompt, other.prompt) for one, other in pairwise(samples)]
    assert sum(turned[:2]) == 1 and turned[2] and sum(turned[3:]) == 1


# -- what is trained ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", IMPORTED)
@pytest.mark.parametrize("lora", [None, 3])
def test_gradient_reaches_all_that_is_trained_and_nothing_else(method, lora):
    rolling = method == "rolling-forcing"
    student = world(SINK, Rolling(TABLE.warp((1000, 500))) if rolling else FEW)
    given = setting(student, lora=lora)
    for part in (given.trained, given.learned):  # adapters that add nothing at first hide one half of themselves
        for name, parameter in part.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    chosen = make(method, given)
    figures = chosen.step(0, draws())
    assert all(value.isfinite() for value in figures.values()) and figures["loss"] > 0 and figures["critic"] > 0
    for part in (given.trained, given.learned):
        unreached = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not unreached
    trained = {id(p) for part in (given.trained, given.learned) for p in part.parameters()}
    nets = given.student, given.teacher, given.critic
    assert all(p.grad is None and not p.requires_grad for net in nets for p in net.parameters() if id(p) not in trained)


def test_the_student_moves_once_for_five_times_of_the_critic():
    given = setting(lora=2)
    chosen, moved = make("self-forcing", given), []
    for step in range(6):
        for optimiser in chosen.optimisers:
            optimiser.zero_grad()
        chosen.step(step, draws(step))
        moved.append(
            tuple(any(p.grad is not None for p in part.parameters()) for part in (given.trained, given.learned))
        )
    assert moved == [(True, True)] + [(False, True)] * 4 + [(True, True)]


def test_adapters_change_nothing_at_first_and_one_file_is_one_copy_of_weights(tmp_path):
    save_file(weights(), tmp_path / "base.safetensors")
    plan, master = (
        plan_student(tmp_path / "base.safetensors", "self_forcing", CONFIG),
        plan_import(tmp_path / "base.safetensors", config=CONFIG),
    )
    student, teacher = load(plan, master, True, torch.device("cpu"))
    given = prepare(student, teacher, PROMPTS, 4, 21, 1, 1e-5)
    nets = [net.state_dict() for net in (given.student.transformer, given.teacher.transformer, given.critic)]
    for name, tensor in nets[1].items():
        assert nets[0][name].data_ptr() == nets[2][name].data_ptr() == tensor.data_ptr(), name
    assert not any("lora" in name for name in nets[1])
    clip = torch.randn(1, 21, 4, 4, 6, generator=draws())
    streams = [reader(given.teacher.spec, net, 21) for net in (given.teacher.transformer, given.critic)]
    one, two = (denoised(stream, clip, clip, 0.5, embedded("x"), embedded("")) for stream in streams)
    assert torch.equal(one, two)


def test_adapters_learn_in_float32_on_weights_in_bfloat16():
    student, teacher = (given.bfloat16() for given in (world(SINK), world(CLIPS, seed=1)))
    given = setting(student, teacher, lora=3)
    figures = make("self-forcing", given).step(0, draws())
    assert all(value.isfinite() for value in figures.values())
    assert given.student.transformer.head.modulation.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in given.trained.parameters())


def test_layers_that_are_computed_again_have_the_same_gradient():
    found = []
    for again in (True, False):
        given = setting(lora=3)
        given.student.transformer.recompute = given.critic.recompute = again
        make("self-forcing", given).step(0, draws())
        found.append([p.grad for part in (given.trained, given.learned) for p in part.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*found, strict=True))


def test_a_critic_learns_what_its_student_makes_and_a_student_goes_where_its_teacher_leads():
    """The teacher has learned clips of one flat colour; the student begins with weights at random."""
    target = torch.tensor([0.9, -0.6, 0.3, -0.9]).view(1, 1, 4, 1, 1)
    teacher, student = world(CLIPS, seed=1), world(SINK, seed=2)
    given = setting(student, teacher, batch=4, rate=1e-2)
    for part in (given.teacher.transformer, given.student.transformer, given.critic):
        part.recompute = False
    knowing = given.teacher.transformer.requires_grad_(True)
    learning, draw = torch.optim.Adam(knowing.parameters(), 1e-2), draws()
    stream = reader(teacher.spec, knowing, 4)
    prompt = torch.cat([embedded(text) for text in PROMPTS.texts])
    for _ in range(250):
        clip = (target + 0.05 * torch.randn(3, 4, 4, 1, 1, generator=draw)).expand(3, 4, 4, 4, 6)
        sigma = 0.02 + 0.96 * float(torch.rand((), generator=draw))
        noisy = (1 - sigma) * clip + sigma * torch.randn(clip.shape, generator=draw)
        learning.zero_grad()
        told = denoised(stream, clip, noisy, sigma, prompt, prompt[:1])
        ((told - clip) / max(sigma, 0.2)).square().mean().backward()
        learning.step()
    knowing.requires_grad_(False)
    given.critic.load_state_dict(knowing.state_dict())
    chosen = make("self-forcing", given)

    def away() -> float:
        with torch.no_grad():
            return float((Played(given)(draws(5)).made - target).square().mean().sqrt())

    before, figures = away(), []
    for step in range(250):
        for optimiser in chosen.optimisers:
            optimiser.zero_grad()
        figures.append(chosen.step(step, draws(step))["critic"].item())
        for optimiser in chosen.optimisers:
            optimiser.step()
    assert away() < 0.5 * before and sum(figures[-20:]) < 0.5 * sum(figures[:20])


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """A student in Self-Forcing's wrapping, a teacher of Wan's, prompts and a text encoder."""
    student, teacher, told = tmp_path / "self_forcing_dmd.pt", tmp_path / "wan.safetensors", tmp_path / "prompts.txt"
    torch.save({"generator_ema": {f"model.{name}": tensor for name, tensor in weights().items()}}, student)
    save_file(weights(1), teacher)
    told.write_text("snow\n\nlava \n")
    return {"student": student, "teacher": teacher, "prompts": told, "encoder": text_encoder(tmp_path / "umt5")}


def trained(capsys, files, out, *options, student="student") -> dict:
    told = ["--teacher", files["teacher"], "--prompts", files["prompts"], "--text-encoder", files["encoder"]]
    words = [files[student], *told, "--out", out, "--frames", 6, "--minutes", 0.02, "--json", *SIZES, *options]
    code, said, err = command(capsys, "train", "distil-checkpoint", *words)
    assert code == 0, err
    return json.loads(said.splitlines()[-1])


def test_adapters_are_trained_saved_merged_by_import_and_play(files, tmp_path, capsys):
    figures = trained(capsys, files, tmp_path / "run", "--lora", 4, "--rate", 0.01)
    assert figures["step"] > 0 and figures["method"] == "self-forcing"
    kept = Path(figures["out"])
    lora = load_file(kept)
    assert kept.name == "lora.safetensors"
    layers = [f"{kind}_attn.{part}" for kind in ("self", "cross") for part in "qkvo"] + ["ffn.0", "ffn.2"]
    names = [f"blocks.{block}.{layer}.lora_{half}.weight" for block in range(2) for layer in layers for half in "AB"]
    assert set(lora) == set(names)
    assert all(tensor.abs().sum() > 0 for tensor in lora.values())
    assert list((tmp_path / "run").glob("lora-*.png"))

    plan = plan_import(files["student"], lora=kept)  # sizes and family are noted beside the adapters
    assert plan.family == "self_forcing" and (plan.spec.rows, plan.spec.columns) == (4, 6)
    merged = plan.load()
    worlds = plan_student(files["student"], None, CONFIG), plan_import(files["teacher"], config=CONFIG)
    given = prepare(*load(*worlds, False, torch.device("cpu")), PROMPTS, 4, 6, 1, 1e-5)
    given.trained.load_state_dict(lora)
    prompt, noise = torch.randn(1, 512, 8, generator=draws()), torch.randn(1, 12, 4, 4, 6, generator=draws(1))
    with torch.no_grad():
        blocks = [w.stream.tick(begun(w.stream, prompt), noise)[0] for w in (merged, given.student)]
    assert torch.allclose(*blocks, rtol=1e-3, atol=1e-4)

    frames = []
    for name, option in (("plain", SIZES), ("tuned", ["--lora", kept])):
        out = tmp_path / f"{name}.world"
        assert command(capsys, "import", files["student"], "--out", out, *option)[0] == 0
        opened = World.open(out)
        assert opened.manifest.spec["family"] == "self_forcing"
        frames.append(Session(opened, seed=1).tick())
    assert frames[0].shape == frames[1].shape and (frames[0] != frames[1]).any()


def test_whole_weights_are_a_checkpoint_that_import_knows_by_what_lies_beside_it(files, tmp_path, capsys):
    files["other"] = tmp_path / "framewise-2step.pt"
    torch.save({"generator": {f"model.{name}": tensor for name, tensor in weights().items()}}, files["other"])
    figures = trained(capsys, files, tmp_path / "run", student="other")
    plan = plan_import(Path(figures["out"]))
    assert plan.family == "causal_forcing" and plan.spec.title == "Causal Forcing++"
    assert len(plan.spec.schedule.levels) == 2 and plan.fit.ok
    out = tmp_path / "tuned.world"
    assert command(capsys, "import", figures["out"], "--out", out)[0] == 0
    assert Session(World.open(out), seed=1).tick().shape == (32, 48, 3)


def test_weights_of_wan_itself_can_be_played_as_a_causal_family_and_teach_themselves(files, tmp_path, capsys):
    figures = trained(capsys, files, tmp_path / "run", "--lora", 2, "--family", "longlive", student="teacher")
    plan = plan_import(files["teacher"], lora=Path(figures["out"]))
    assert plan.family == "longlive"


class Enough(Exception):
    """Stops a run."""


@pytest.mark.parametrize("lora", [None, 3])
def test_a_run_that_was_stopped_goes_on_exactly(lora, tmp_path):
    def go(out: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        given = setting(lora=lora)
        chosen = make("self-forcing", given)
        run = Run(
            out, "x", given.trained, chosen.optimisers, Budget(60), Team.join(), chosen.average, resume, chosen.beside
        )

        def step(number: int) -> dict[str, torch.Tensor]:
            if number == steps:
                raise Enough
            return chosen.step(number, draws(number))

        with pytest.raises(Enough):
            run.loop(step)
        run.save()
        return {
            **run.average,
            **run.model.state_dict(),
            **{f"critic {k}": v for k, v in given.learned.state_dict().items()},
        }

    whole = go(tmp_path / "a", 8)
    begun_with = go(tmp_path / "b", 3)
    resumed = go(tmp_path / "b", 8, resume=True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(not torch.equal(whole[name], begun_with[name]) for name in whole)


def test_a_run_goes_on_by_command_and_another_student_needs_another_folder(files, tmp_path, capsys):
    first = trained(capsys, files, tmp_path / "run", "--lora", 2)
    more = trained(capsys, files, tmp_path / "run", "--lora", 2, "--resume", "--minutes", first["seconds"] / 60 + 0.01)
    assert more["step"] > first["step"]
    after = trained(capsys, files, tmp_path / "next", "--lora", 2, "--method", "long-tuning", "--init", first["out"])
    assert after["method"] == "long-tuning"
    told = ["--teacher", files["teacher"], "--prompts", files["prompts"], "--text-encoder", files["encoder"]]
    again = [files["student"], *told, "--out", tmp_path / "run", "--frames", 6, *SIZES, "--resume", "--lora", 3]
    code, _, err = command(capsys, "train", "distil-checkpoint", *again)
    assert code == 2 and "another student belongs in a new folder" in err


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"method": "ode"}, "no method 'ode' for imported checkpoints; there are self-forcing"),
        ({"student": "teacher"}, r"Wan 2\.1 T2V, which takes many steps.*--family with one of longlive"),
        ({"family": "minwm"}, "--family minwm: a student is one of longlive"),
        ({"frames": 7}, r"--frames 7: must be a multiple of Self-Forcing's blocks of 3"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt: no prompts can be read"),
        ({"encoder": "."}, "no text encoder in"),
        ({"teacher": "wide"}, "a teacher with text_dim 12 cannot judge a student with 8"),
        ({"teacher": "camera"}, "is minWM: only what is steered by text alone"),
        ({"method": "rolling-forcing"}, "nothing rolls: use self-forcing"),
        ({"init": "teacher"}, "does not fit"),
        ({"out": "."}, "is the checkpoint's own folder"),
    ],
)
def test_what_cannot_be_distilled_is_refused_with_the_cure(files, tmp_path, change, wanted):
    for name, differs in (("wide", {"text_dim": 12}), ("camera", {"camera": True})):
        files[name] = tmp_path / f"{name}.safetensors"
        save_file(
            {k: torch.randn_like(v) for k, v in WanTransformer(replace(SMALL, **differs)).state_dict().items()},
            files[name],
        )
    given = {"method": "self-forcing", "student": "student", "teacher": "teacher", "out": "run"} | change
    paths = [files.get(str(given.get(name, name)), tmp_path / str(given.get(name))) for name in ("student", "teacher")]
    told = {name: tmp_path / given[name] if name in given else files[name] for name in ("prompts", "encoder")}
    init = files[given["init"]] if "init" in given else None
    with pytest.raises((SpecError, CheckpointError, DatasetError), match=wanted):
        train_distil_checkpoint(
            given["method"], *paths, told["prompts"], told["encoder"], tmp_path / given["out"], 0.01, lora=2,
            family=given.get("family"), frames=given.get("frames", 6), init=init, config=CONFIG,
        )  # fmt: skip


def test_who_takes_the_command_for_native_worlds_is_told_of_this_one(tmp_path):
    with pytest.raises(CheckpointError, match="'worldloop train distil-checkpoint' takes imported checkpoints"):
        plan_native(tmp_path / "wan.safetensors", tmp_path / "out", (), Team.join())


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "none.txt").write_text("\n \n")
    with pytest.raises(DatasetError, match="holds no prompts: write one a line"):
        read_lines(tmp_path / "none.txt")


def test_a_teacher_of_another_size_may_judge(tmp_path):
    big = WanTransformer(replace(SMALL, dim=32, layers=3)).state_dict()
    save_file({name: torch.randn_like(tensor) for name, tensor in big.items()}, tmp_path / "big.safetensors")
    save_file(weights(), tmp_path / "small.safetensors")
    student = plan_student(tmp_path / "small.safetensors", "reward_forcing", CONFIG)
    teacher = plan_teacher(tmp_path / "big.safetensors", student, 6, CONFIG)
    given = prepare(*load(student, teacher, False, torch.device("cpu")), PROMPTS, 2, 6, 1, 1e-5)
    assert make("self-forcing", given).step(0, draws())["loss"].isfinite()

"""Distillation does what its papers promise: on Gaussians, where the answer is known; on tiny worlds, tick by tick."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.errors import SpecError
from worldmodel.schedule.table import frame_wise, rolling
from worldmodel.spec import CodecSpec, GeneratorSpec, WorldSpec
from worldmodel.tick import World, next_latent, recache, start
from worldmodel.train.distil import METHODS, long_tuning, roll_out, rolling_forcing
from worldmodel.train.distil import dmd as dmd_module
from worldmodel.train.distil.consistency import consistency_loss
from worldmodel.train.distil.context import context
from worldmodel.train.distil.flow import GRID, along, grid
from worldmodel.train.distil.matching import critic_loss, direction, draw_sigma, matching_loss
from worldmodel.train.distil.ode import with_levels
from worldmodel.train.distil.on_policy import advantage, forward_loss
from worldmodel.train.distil.reliability import saliency
from worldmodel.train.distil.reward_forcing import motion_reward, reward_weight
from worldmodel.train.distil.roll_out import Played, Sample, left_at
from worldmodel.train.distil.rolling_forcing import HalfRolled, Rolled
from worldmodel.train.distil.self_forcing import self_forcing
from worldmodel.train.distil.setting import Setting, noised
from worldmodel.train.distil.train import make
from worldmodel.train.latents import LatentSet
from worldmodel.transformer.clip import clip_layer

MEAN, WIDTH = 1.5, 0.6  # what is real, in the toys


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def posterior(mean, width):
    """x0 that a Gaussian N(mean, width²) is expected to have been, given its noised form."""

    def denoise(noisy, sigma):
        level = sigma.view(*sigma.shape, *[1] * (noisy.dim() - sigma.dim()))
        share = (1 - level) * width**2 / ((1 - level) ** 2 * width**2 + level**2)
        return mean + share * (noisy - (1 - level) * mean)

    return denoise


# -- distribution matching ----------------------------------------------------------------------------------------


def test_a_student_comes_to_be_distributed_as_what_its_teacher_knows():
    torch.manual_seed(0)
    student = torch.nn.Parameter(torch.tensor([-1.0, 0.2]))  # mean and width of what it makes of noise
    critic = torch.nn.Parameter(torch.tensor([-1.0, np.log(0.2)]))
    teaching, learning = (torch.optim.Adam([part], 0.03, (0.0, 0.999)) for part in (student, critic))
    draw, real = draws(), posterior(MEAN, WIDTH)
    for step in range(1500):
        sample = student[0] + student[1] * torch.randn(64, 1, 8, 1, 1)
        sigma = draw_sigma(64, draw)
        noisy = noised(sample.detach(), torch.randn(64, 1, 8, 1, 1), sigma[:, None])
        fake = posterior(critic[0], critic[1].exp())(noisy, sigma[:, None])
        if step % 5 == 0:
            teaching.zero_grad()
            matching_loss(sample, direction(sample.detach(), real(noisy, sigma[:, None]), fake.detach())).backward()
            teaching.step()
        learning.zero_grad()
        critic_loss(fake, sample.detach(), sigma).backward()
        learning.step()
    assert abs(student[0].item() - MEAN) < 0.1 and abs(abs(student[1].item()) - WIDTH) < 0.1


def test_direction_and_loss_are_those_of_the_published_formula():
    draw = draws()
    sample, real, fake = torch.randn(3, 2, 4, 5, 3, 2, generator=draw).double()
    sample = sample.requires_grad_(True)
    counts = torch.tensor([[1.0, 0, 1, 1], [1, 1, 1, 1]])
    weight = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1, 1)
    away = direction(sample.detach(), real, fake, counts)
    x, p, f = (part.detach().numpy() for part in (sample, real, fake))
    for clip in range(2):
        judged = counts[clip].numpy() > 0
        wanted = (f - p)[clip, judged] / np.abs(x - p)[clip, judged].mean()
        assert np.allclose(away[clip].numpy()[judged], wanted)
    assert (away[0, 1] == 0).all()
    loss = matching_loss(sample, away, counts, weight)
    loss.backward()
    elements = float(counts.sum()) * 5 * 3 * 2
    assert torch.allclose(sample.grad, weight * away / elements)
    assert np.isclose(loss.item(), 0.5 * float((weight * away.square()).sum()) / elements)


def test_a_score_that_is_nothing_moves_nothing():
    sample = torch.zeros(1, 1, 2)
    assert (direction(sample, sample, sample) == 0).all(), "0 / 0"


def test_scores_are_compared_at_the_published_noise_levels():
    sigma = draw_sigma(20_000, draws())
    assert sigma.min() == pytest.approx(0.02) and sigma.max() == pytest.approx(0.98)
    for even in (0.25, 0.5, 0.75):
        assert sigma.quantile(even).item() == pytest.approx(5 * even / (1 + 4 * even), abs=0.01)


def test_the_critics_error_is_that_of_the_velocity():
    clean, noise, made = torch.randn(3, 4, 2, 6, generator=draws())
    sigma = torch.tensor([0.1, 0.4, 0.7, 0.98])
    noisy = noised(clean[..., None, None], noise[..., None, None], sigma[:, None].expand(4, 2))[..., 0, 0]
    velocity = (noisy - made) / sigma[:, None, None]
    wanted = (velocity - (noise - clean)).square().mean()
    assert critic_loss(made, clean, sigma).item() == pytest.approx(wanted.item(), rel=1e-4)


# -- roll-outs ----------------------------------------------------------------------------------------------------

TINY = WorldSpec(
    name="tiny", height=16, width=16, tick_hz=25, actions=("left", "gas"), keys={}, environment="none",
    prompt_tokens=2, prompt_dim=4, window=3,
    codec=CodecSpec(
        channels=4, down=4, encoder_width=8, encoder_blocks=1, decoder_widths=(8, 8), decoder_blocks=(1, 1)
    ),
    generator=GeneratorSpec(dim=32, depth=2, heads=2, action_history=3), schedule=frame_wise(1.0, 0.6, 0.3),
)  # fmt: skip


def world(spec=TINY, seed=0):
    torch.manual_seed(seed)
    made = World(spec)
    for parameter in made.generator.parameters():  # layers that start at zero would hide mistakes
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    return made


def recording(frames=600):
    """Two episodes of noise; one prompt each."""
    draw = draws(5)
    episode = torch.arange(frames) // (frames // 2)
    first = episode * (frames // 2)
    return LatentSet(
        torch.randn(1, frames, *TINY.latent_shape, generator=draw).half(),
        torch.randint(0, 2, (1, frames, 2), generator=draw).float(), episode, first, episode, first,
        torch.arange(2)[:, None].expand(-1, 4), torch.randn(2, 2, 4, generator=draw), torch.arange(frames) % 9 > 2,
        torch.ones(frames, dtype=torch.bool),
    )  # fmt: skip


def setting(student=TINY, teacher=TINY, batch=2):
    return Setting(world(student), world(teacher).requires_grad_(False), recording(), batch, clip_layer)


def begun(model, schedule, draw):
    spec = model.spec
    latents = torch.randn(2, spec.window + 2, *spec.latent_shape, generator=draw)
    state = start(model, latents, torch.randn(2, spec.window + 2, 3, 2, generator=draw), schedule)
    prompt = torch.randn(2, 2, 4, generator=draw)
    return recache(model, state, prompt), torch.ones(2, 2), prompt


def close(first, second):
    return all(torch.allclose(first[name].float(), second[name].float(), atol=1e-5) for name in second)


@torch.no_grad()
def test_a_tick_left_at_its_last_pass_is_the_tick():
    model, schedule = world(), TINY.schedule
    state, action, prompt = begun(model, schedule, draws())
    draw, again = draws(1), draws(1)
    made, after = left_at(model, state, action, prompt, schedule.steady, 2, draw)
    shape = TINY.latent_shape
    noise = torch.cat([torch.randn(2, count, *shape, generator=again) for count in (2, 1)], 1)
    wanted, state_wanted = next_latent(model, state, action, prompt, noise, schedule)
    assert torch.allclose(made[:, 0], wanted, atol=1e-5) and close(after, state_wanted)


@torch.no_grad()
def test_a_window_in_flight_is_that_of_the_tick():
    schedule = rolling(3)
    model = world(replace(TINY, schedule=schedule))
    state, action, prompt = begun(model, schedule, draws())
    draw, again = draws(1), draws(1)
    made, after = left_at(model, state, action, prompt, schedule.steady, 0, draw)
    new, _, renewed = (torch.randn(2, n, *TINY.latent_shape, generator=again) for n in (1, 2, 2))
    assert made.shape[1] == 3
    wanted, state_wanted = next_latent(model, state, action, prompt, torch.cat([new, renewed], 1), schedule)
    assert torch.allclose(made[:, 0], wanted, atol=1e-5)
    del after["flight"], state_wanted["flight"]
    assert close(after, state_wanted)


def test_all_ticks_of_a_roll_out_are_left_at_one_pass_drawn_anew_each_time(monkeypatch):
    left = []
    monkeypatch.setattr(roll_out, "left_at", lambda *a: left.append(a[5]) or left_at(*a))
    played, draw, seen = Played(setting(), ticks=4), draws(), set()
    for _ in range(12):
        left.clear()
        played(draw)
        assert len(left) == 4 and len(set(left)) == 1
        seen |= set(left)
    assert seen == {0, 1, 2}


def test_a_roll_outs_history_is_its_own_and_carries_no_gradient():
    model = world()
    state, action, prompt = begun(model, TINY.schedule, draws())
    made, after = left_at(model, state, action, prompt, TINY.schedule.steady, 1, draws())
    assert made.requires_grad and not any(part.requires_grad for part in after.values())
    assert torch.equal(after["latents"][:, -1], made[:, 0].detach())
    sample = Played(setting(), ticks=4)(draws())
    begin = TINY.window + 1
    assert torch.equal(sample.clip.clean, sample.made.detach()) and not sample.clip.clean.requires_grad
    assert torch.equal(sample.clip.clean[:, : begin + 1], sample.recorded[:, : begin + 1])
    assert (sample.clip.clean[:, begin + 1 :] != sample.recorded[:, begin + 1 :]).any()
    assert sample.counts.tolist() == [[0.0] * (begin + 1) + [1.0] * 4] * 2


def test_only_the_pass_at_which_a_tick_is_left_has_gradient():
    """So that a noise level which is met before it gets none."""
    model = world()
    state, action, prompt = begun(model, TINY.schedule, draws())
    heard = []
    level = model.generator.level

    def listening(sigma):
        told = level(sigma).detach().requires_grad_(True)
        heard.append((sigma, told))
        return told

    model.generator.level = listening
    left_at(model, state, action, prompt, TINY.schedule.steady, 2, draws())[0].sum().backward()
    gradient = {round(float(s), 3): told.grad is not None for sigma, told in heard for s in sigma if s > 0}
    assert gradient == {1.0: False, 0.6: False, 0.3: True}


FLYING = replace(TINY, schedule=rolling(3))


def test_every_frame_in_flight_is_judged_once_and_told_what_it_was_told(monkeypatch):
    windows = []

    def spy(*arguments):
        made, after = left_at(*arguments)
        windows.append((arguments[2], made))
        return made, after

    monkeypatch.setattr(rolling_forcing, "left_at", spy)
    rolled, draw, begins = Rolled(setting(FLYING), windows=2), draws(), set()
    for _ in range(12):
        windows.clear()
        sample = rolled(draw)
        counted = sample.counts[0].nonzero().flatten()
        graded = [tick for tick, (_, made) in enumerate(windows) if made.requires_grad]
        first = int(counted[0])
        begins.add(graded[0])
        assert len(counted) == 6 and graded == [graded[0], graded[0] + 3], "side by side"
        assert first == TINY.window + 2 + graded[0]
        for number, tick in enumerate(graded):
            here = slice(first + 3 * number, first + 3 * number + 3)
            assert torch.equal(sample.made[:, here], windows[tick][1])
            assert (sample.clip.actions[:, here, -1] == windows[tick][0][:, None]).all(), "the newest key is held"
    assert begins == {0, 1, 2}, "every frame is judged at every place, over time"


def test_frames_in_flight_are_made_anew_now_and_then(monkeypatch):
    passes = []
    monkeypatch.setattr(rolling_forcing, "left_at", lambda *a: passes.append(a[4].passes) or left_at(*a))
    rolled, draw = Rolled(setting(FLYING)), draws()
    later = []
    with torch.no_grad():
        for _ in range(20):
            passes.clear()
            rolled(draw)
            assert passes[0] == 3, "a window begins by growing"
            later += passes[1:]
    assert set(later) == {1, 3} and 0.1 < later.count(3) / len(later) < 0.3


def test_half_of_the_roll_outs_go_frame_by_frame():
    half, draw = HalfRolled(setting(FLYING)), draws()
    kinds = []
    half.rolled = lambda _: kinds.append("rolled")
    half.played = lambda _: kinds.append("played")
    for _ in range(200):
        half(draw)
    assert 70 < kinds.count("rolled") < 130
    assert Played(setting(FLYING)).schedule == frame_wise(1.0, 2 / 3, 1 / 3)


def test_rolling_needs_frames_in_flight():
    with pytest.raises(SpecError, match=r"schedule\.sigmas"):
        Rolled(setting())


@pytest.mark.parametrize("method, spec", [("self-forcing", TINY), ("rolling-forcing", FLYING), ("dmd", TINY)])
def test_a_student_that_errs_to_one_side_is_led_back_by_its_teacher(method, spec, monkeypatch):
    monkeypatch.setattr(dmd_module, "RATE", 0.05)
    monkeypatch.setattr(dmd_module, "CRITIC_RATE", 0.05)
    given = setting(spec)
    student = given.student.generator
    chosen, draw = make(method, given), draws()
    for net in (student, chosen.critic, given.teacher.generator):
        torch.nn.init.zeros_(net.carry.bias)  # each frame for itself: untrained nets would add up what they are shown
    for net in (student, chosen.critic):
        net.requires_grad_(False).head.bias.requires_grad_(True)
    with torch.no_grad():
        student.head.bias += 1.0
    for step in range(40):
        for optimiser in chosen.optimisers:
            optimiser.zero_grad()
        chosen.step(step, draw)
        for optimiser in chosen.optimisers:
            optimiser.step()
    away = (student.head.bias - given.teacher.generator.head.bias).mean().item()
    assert -0.2 < away < 0.75


# -- the teacher's flow -------------------------------------------------------------------------------------------


def test_the_flow_leads_noise_to_what_is_real():
    noise = torch.randn(4, 3, 2, generator=draws())
    levels = with_levels(grid(400), (1.0, 0.3))
    points = along(posterior(MEAN, WIDTH), noise, levels)
    assert torch.allclose(points[-1], MEAN + WIDTH * noise, atol=0.02), "each number to its own rank"
    at = int((levels == torch.tensor(0.3)).nonzero())
    width = (0.7**2 * WIDTH**2 + 0.3**2) ** 0.5
    assert torch.allclose(points[at], 0.7 * MEAN + width * noise, atol=0.02), "the student's own levels are on the way"


def test_a_consistent_student_jumps_from_noise_to_the_end_of_the_flow():
    torch.manual_seed(0)
    student, average = (torch.nn.Parameter(torch.tensor([0.0, np.log(0.2)])) for _ in range(2))
    optimiser = torch.optim.Adam([student], 0.03)

    def jumps(told):
        """Where the flow of N(mean, width²) would end, from any level."""

        def jump(noisy, sigma):
            mean, width, level = told[0], told[1].exp(), sigma[:, :, None, None, None]
            return mean + width * (noisy - (1 - level) * mean) / ((1 - level) ** 2 * width**2 + level**2).sqrt()

        return jump

    for _ in range(320):
        clean = MEAN + WIDTH * torch.randn(32, 24, 1, 1, 1)
        at = torch.randint(GRID, (32, 24))
        with torch.no_grad():
            average.lerp_(student, 0.5)
        noise, counts = torch.randn(32, 24, 1, 1, 1), torch.ones(32, 24)
        loss = consistency_loss(jumps(student), jumps(average), posterior(MEAN, WIDTH), clean, noise, at, counts)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert student[0].item() == pytest.approx(MEAN, abs=0.1) and student[1].exp().item() == pytest.approx(
        WIDTH, abs=0.1
    )


# -- rewards ------------------------------------------------------------------------------------------------------


def pictures(shift, frames=6):
    """Clips of noise that moves to the right by `shift` pixels a frame, as latents of a codec that does nothing."""
    ground = torch.rand(3, 32, 64, generator=draws(3))
    ground = torch.nn.functional.avg_pool2d(ground, 5, 1, 2)
    ground = (ground - ground.mean()) * 4 + 0.5
    return torch.stack([ground.roll(shift * at, 2)[:, :, 16:48] for at in range(frames)])[None].clamp(0, 1)


def moving(shift):
    counts = torch.tensor([[0.0, 1, 1, 1, 1, 1]])
    return Sample(SimpleNamespace(), pictures(shift), counts, pictures(2))


def test_what_moves_as_the_recording_does_counts_most():
    nothing = SimpleNamespace(codec=SimpleNamespace(decode=lambda latents: latents))
    same, slow, frozen = (motion_reward(nothing, moving(shift)).item() for shift in (2, 1, 0))
    assert same == 1 and -0.5 < slow < 0.5 and frozen == -1
    weights = reward_weight(torch.tensor([same, frozen])).flatten()
    assert weights[0] / weights[1] == pytest.approx(np.exp(2 * 2.0), rel=1e-4)


def test_reward_weighted_matching_leans_towards_the_rewarded_ones():
    """Two samples are drawn to two teachers' answers; the one with the reward moves exp(β · reward) as far."""
    sample = torch.zeros(2, 1, 1, 1, 1, requires_grad=True)
    away = torch.ones(2, 1, 1, 1, 1)
    matching_loss(sample, away, torch.ones(2, 1), reward_weight(torch.tensor([1.0, 0.0]))).backward()
    assert (sample.grad[0] / sample.grad[1]).item() == pytest.approx(np.exp(2.0), rel=1e-5)


def test_places_that_the_reward_hangs_on_count_more_and_the_whole_stays():
    gradient = torch.zeros(1, 2, 3, 2, 2)
    gradient[0, 1, :, 0, 1] = -4.0
    weight = saliency(gradient, torch.tensor([[0.0, 1.0]]))
    assert weight[0, 1].mean() == pytest.approx(1.0) and weight[0, 1, 0, 0, 1] > weight[0, 1, 0, 0, 0]
    assert (saliency(torch.zeros(1, 2, 3, 2, 2), torch.ones(1, 2)) == 1).all()


def test_the_better_roll_outs_of_a_group_are_learned_and_the_spread_stays():
    torch.manual_seed(0)
    policy = torch.nn.Parameter(torch.tensor([0.0, 0.5]))  # mean and width, as one pass makes them of noise
    optimiser = torch.optim.Adam([policy], 0.02)
    for _ in range(60):
        old = policy.detach().clone()
        sample = old[0] + old[1] * torch.randn(64, 4, 1, 1)
        better = advantage(sample[..., 0, 0]).flatten()
        noise = torch.randn(256, 1, 1)
        loss = forward_loss(
            policy[0] + policy[1] * noise, old[0] + old[1] * noise, sample.flatten(0, 1), better, torch.ones(256, 1)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert policy[0] > 0.8, "what lies further up is better"
    assert policy[1].item() == pytest.approx(0.5, abs=0.15), "and nothing says that it should lie closer together"


def test_only_better_and_worse_within_a_group_count():
    told = advantage(torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 1.0, 1.0], [-9.0, 0.0, 0.0, 0.0]]))
    assert told.mean(1).abs().max() < 1e-6, "also of skewed rewards"
    assert (told[0] == 0).all() and (told[1, :2] < 0).all() and (told[1, 2:] > 0).all()


# -- long streams, long memories ----------------------------------------------------------------------------------


def test_a_long_stream_goes_on_where_it_was_and_is_told_another_prompt_once(monkeypatch):
    told = []
    streamed, draw = long_tuning.Streamed(setting(), longest=48), draws()
    with torch.no_grad():
        for step in range(8):
            before = streamed.state.get("latents")
            sample = streamed(draw)
            told.append(sample.clip.prompt[:, -1])
            assert sample.counts.sum(1).tolist() == [12, 12]
            if step % 4:
                begin = streamed.setting.begin
                shown = sample.clip.clean[:, begin - TINY.window : begin + 1]
                assert torch.equal(shown, before[:, 1:]), "what came before is the state it was left in"
            assert int(streamed.state["frame"][0]) == TINY.window + 1 + 12 * (step % 4 + 1)
    for stream in (told[:4], told[4:]):
        news = [not torch.equal(a, b) for a, b in itertools.pairwise(stream)]
        same = torch.equal(stream[0][0], stream[0][1])  # both clips may have been of one scene
        assert sum(news) == (0 if same else 1)


def test_a_teacher_with_a_longer_memory_judges_by_what_the_student_has_forgotten():
    given = setting(teacher=replace(TINY, window=8))
    chosen = context(given)
    with torch.no_grad():
        sample = chosen.sampler(draws())
        forgotten = sample.clip.clean.clone()
        frame = given.begin + 1  # the first own frame; the student's window reaches back to frame - 3
        forgotten[:, frame - 7] += 3.0
        other = replace(sample, clip=replace(sample.clip, clean=forgotten))
        for net in (given.teacher.generator, chosen.critic):
            torch.nn.init.normal_(net.head.weight, std=0.2)
        losses = [chosen.critic_loss(judged, draws(2)).item() for judged in (sample, other)]
    assert losses[0] != losses[1]
    with pytest.raises(SpecError, match="longer window"):
        context(setting())


# -- the EMA sink -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_sink_that_averages_takes_in_what_leaves_the_window_before_the_next_frame_is_made():
    still, fused = (world(replace(TINY, sink_keep=keep)) for keep in (1.0, 0.75))
    state, action, prompt = begun(still, TINY.schedule, draws())
    noise = torch.randn(2, 3, *TINY.latent_shape, generator=draws(1))
    (kept, kept_state), (made, after) = (
        next_latent(model, state, action, prompt, noise, TINY.schedule) for model in (still, fused)
    )
    for layer in range(2):
        before = state[f"kv.{layer}"]
        assert torch.equal(kept_state[f"kv.{layer}"][:, :, :, 0], before[:, :, :, 0])
    first = state["kv.0"]
    assert torch.allclose(after["kv.0"][:, :, :, 0], 0.75 * first[:, :, :, 0] + 0.25 * first[:, :, :, 1], atol=1e-6)
    assert not torch.equal(made, kept)


# -- all of them --------------------------------------------------------------------------------------------------


def test_every_method_makes_gradients_for_the_student_and_none_for_the_teacher():
    for name in METHODS:
        spec = FLYING if name == "rolling-forcing" else TINY
        given = setting(spec, replace(TINY, window=8) if name == "context" else spec, batch=4)
        if name == "reliability":
            eye = SimpleNamespace(describe=lambda p: p.mean((2, 3)), to=lambda _: eye)  # noqa: B023
            given = replace(given, judge=SimpleNamespace(eye=eye))
        chosen = make(name, given)
        if "critic" in chosen.beside:  # at first it knows nothing but what its teacher does
            chosen.critic.head.bias.data += 1.0
        figures = chosen.step(0, draws())
        assert all(np.isfinite(float(value)) for value in figures.values()), name
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in given.student.generator.parameters()), name
        assert all(p.grad is None for p in given.teacher.parameters()), name


def test_the_student_moves_once_for_five_times_of_the_critic():
    given = setting()
    chosen, draw = self_forcing(given), draws()
    moved = []
    for step in range(6):
        for optimiser in chosen.optimisers:
            optimiser.zero_grad()
        chosen.step(step, draw)
        nets = (given.student.generator, chosen.critic)
        moved.append(tuple(any(p.grad is not None for p in net.parameters()) for net in nets))
    assert moved == [(True, True)] + [(False, True)] * 4 + [(True, True)]


def test_methods_are_listed():
    from worldmodel.registry import listing

    assert {entry["name"] for entry in json.loads(json.dumps(listing()))["distillations"]} == set(METHODS)

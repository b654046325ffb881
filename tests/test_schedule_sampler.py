"""What any cache under any schedule promises, whatever the weights."""

import pytest
import torch
from small_streams import ACTIONS, FEW, ROLLING, SIZE, play, prompt, random, started, transformer

from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.first_pass_sink import FirstPassSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.condition.camera import path_views, projections, ray_steps
from worldmodel.errors import SpecError
from worldmodel.schedule.few_step import FewStep, diagonal
from worldmodel.schedule.moving_buffer import MovingBuffer
from worldmodel.schedule.plan import FlowTable
from worldmodel.schedule.rolling import Rolling
from worldmodel.schedule.sampler import Stream
from worldmodel.schedule.stream_batch import StreamBatch

CACHES = {
    "window": SinkWindow(window=6, chunk=2),
    "sink": SinkWindow(window=7, sink=1, chunk=2),
    "relative": RelativeSinkWindow(window=6, sink=2, chunk=2),
    "ema": EmaSink(window=6, sink=2, chunk=2, alpha=0.5),
    "rolling": RollingSink(window=10, sink=2, chunk=2, attention=9),
}
SCHEDULES = {
    "few": FewStep(FEW, (ROLLING,)),
    "rolling": Rolling(ROLLING),
    "buffer": MovingBuffer(chunks=2, steps=2),
    "batch": StreamBatch(FEW),
}


def test_a_sink_within_one_chunk_keeps_clean_frames_and_a_wider_one_what_the_first_pass_made():
    model, same = transformer(), {}
    for sink in (2, 3):
        streams = (Stream(model, cache(7, sink, 2), FewStep(FEW), SIZE) for cache in (SinkWindow, FirstPassSink))
        plain, early = (play(stream, started(stream), 4)[0] for stream in streams)
        same[sink] = torch.equal(plain, early)
    assert same == {2: True, 3: False}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cache", CACHES)
def test_a_commit_that_rides_along_equals_one_of_its_own(cache, schedule):
    model = transformer()
    latents, states = [], []
    for fused in (False, True):
        stream = Stream(model, CACHES[cache], SCHEDULES[schedule], SIZE, fused=fused)
        made, state = play(stream, started(stream), 9)
        latents.append(made)
        states.append(stream.recache(state, prompt(3)))  # hands over the block that still waits
    assert torch.allclose(*latents, atol=2e-5)
    assert torch.allclose(states[0]["kv.self.k"], states[1]["kv.self.k"], atol=2e-5)


def test_a_riding_commit_is_exact_with_cameras_actions_and_guidance():
    model = transformer(camera=True, actions=ACTIONS)
    views = projections(path_views("w*3,l*20,a*4")[None], torch.diag(torch.tensor([0.5, 0.9, 1.0])).expand(1, 28, 3, 3))

    def steer(tick: int):
        rows = {name: random(1, 2, 12, n, seed=tick + n) for name, n in (("mouse", 2), ("keyboard", 3))}
        return {"camera": views[:, 2 * tick : 2 * tick + 2], **rows}

    made = []
    for fused in (False, True):
        stream = Stream(model, CACHES["sink"], FewStep(FEW), SIZE, fused=fused, guidance=3.0)
        made.append(play(stream, started(stream), 8, steer=steer)[0])
    assert torch.allclose(*made, atol=1e-4)


def test_a_riding_commit_is_exact_with_rays():
    model, made = transformer(ray_side=2), []

    def steer(tick: int):
        return {"rays": ray_steps([["w", "jlik"[tick % 4]]], 2, torch.tensor([tick == 0])).float()}

    for fused in (False, True):
        stream = Stream(model, CACHES["sink"], FewStep(FEW), SIZE, fused=fused)
        made.append(play(stream, started(stream), 8, steer=steer)[0])
    assert torch.allclose(*made, atol=1e-4)


def test_fusing_is_refused_where_it_cannot_be_exact():
    model = transformer()
    with pytest.raises(SpecError, match=r"cannot be fused.*at least sink \+ 2 chunks = 6"):
        Stream(model, EmaSink(window=4, sink=2, chunk=2), FewStep(FEW), SIZE, fused=True)
    with pytest.raises(SpecError, match="no commit pass to fuse"):
        Stream(model, CACHES["sink"], FewStep(FEW, commit="last"), SIZE, fused=True)


@pytest.mark.parametrize("cache", [SinkWindow(window=5, sink=1), EmaSink(window=4, sink=1)])
def test_a_rolling_window_of_one_level_is_frame_wise_one_step(cache):
    model, one = transformer(), FEW[:1]
    made = [play(stream, started(stream), 9)[0] for stream in (
        Stream(model, cache, Rolling(one), SIZE), Stream(model, cache, FewStep(one), SIZE)
    )]  # fmt: skip
    assert torch.equal(*made)


@pytest.mark.parametrize("sink", [14, 16])
def test_a_sink_larger_than_the_game_is_full_attention(sink):
    model = transformer()
    made = [play(stream, started(stream), 7)[0] for stream in (
        Stream(model, SinkWindow(window=sink + 2, sink=sink, chunk=2), FewStep(FEW), SIZE),
        Stream(model, SinkWindow(window=14, chunk=2), FewStep(FEW), SIZE),
        Stream(model, RelativeSinkWindow(window=sink + 2, sink=sink, chunk=2), FewStep(FEW), SIZE),
    )]  # fmt: skip
    assert torch.allclose(made[0], made[1], atol=1e-5) and torch.allclose(made[0], made[2], atol=1e-5)


def test_a_recache_with_the_same_prompt_changes_nothing():
    """Exactly as long as every block saw all that was before it: nothing has left the cache yet."""
    model = transformer()
    stream = Stream(model, SinkWindow(window=8, sink=2, chunk=2), FewStep(FEW), SIZE)
    _, state = play(stream, started(stream), 4)
    after = stream.recache(state, prompt(), causal=True)
    assert after.keys() == state.keys()
    for name in state:
        assert torch.allclose(after[name], state[name], atol=1e-5), name


@pytest.mark.parametrize("cache", ["sink", "relative", "ema", "rolling"])
@pytest.mark.parametrize("keep_sink", [True, False])
def test_a_second_recache_with_the_same_prompt_changes_nothing(cache, keep_sink):
    stream = Stream(transformer(), CACHES[cache], FewStep(FEW), SIZE)
    _, state = play(stream, started(stream), 7)
    once = stream.recache(state, prompt(2), keep_sink=keep_sink)
    twice = stream.recache(once, prompt(2), keep_sink=keep_sink)
    for name in once:
        assert torch.allclose(once[name], twice[name], atol=1e-5), name
    assert not torch.allclose(once["kv.self.v"], state["kv.self.v"], atol=1e-2)


def test_a_prompt_switch_turns_the_very_next_block():
    stream = Stream(transformer(), CACHES["sink"], FewStep(FEW), SIZE)
    _, state = play(stream, started(stream), 5)
    same, _ = play(stream, stream.recache(state, prompt(1)), 1, seed=5)
    other, _ = play(stream, stream.recache(state, prompt(2)), 1, seed=5)
    assert (same - other).abs().max() > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_tick_leaves_the_state_it_was_given_as_it_was(schedule):
    stream = Stream(transformer(), CACHES["ema"], SCHEDULES[schedule], SIZE)
    _, state = play(stream, started(stream), 4)
    before = {name: value.clone() for name, value in state.items()}
    first, _ = play(stream, state, 2)
    assert all(torch.equal(state[name], before[name]) for name in before)
    again, _ = play(stream, state, 2)
    assert torch.equal(first, again)


@pytest.mark.parametrize("cache", CACHES)
def test_using_up_the_state_gives_the_same_blocks(cache):
    model = transformer()
    made = [play(stream, started(stream), 8)[0] for stream in (
        Stream(model, CACHES[cache], SCHEDULES["few"], SIZE, in_place=in_place) for in_place in (False, True)
    )]  # fmt: skip
    assert torch.equal(*made)


@pytest.mark.parametrize("cache", CACHES)
def test_a_player_does_not_notice_the_other(cache):
    """Two players of one batch, one of them four blocks further into the game, see what each alone would see."""
    stream = Stream(transformer(), CACHES[cache], FewStep(FEW), SIZE)
    _, early = play(stream, started(stream), 2)
    _, late = play(stream, started(stream, seed=2), 6, seed=3)
    both = {name: torch.cat([early[name], late[name]]) for name in early}
    made, _ = play(stream, both, 4, seed=7)
    for player, alone in enumerate((early, late)):
        assert torch.allclose(made[player], play(stream, alone, 4, seed=7)[0][0], atol=1e-5)


def test_players_in_different_phases_of_a_rolling_window_are_refused():
    stream = Stream(transformer(), CACHES["rolling"], Rolling(ROLLING), SIZE)
    fresh, (_, warm) = started(stream), play(stream, started(stream), 2)
    with pytest.raises(SpecError, match="same phase"):
        stream.plan({name: torch.cat([fresh[name], warm[name]]) for name in fresh})


@pytest.mark.parametrize("cache", CACHES)
def test_where_a_stream_stands_does_not_matter(cache):
    """Moved by thousands of frames, far over the 1,024 that the public tables have, a stream goes on the same."""
    technique = CACHES[cache]
    stream = Stream(transformer(), technique, FewStep(FEW), SIZE)
    _, state = play(stream, started(stream), 12)
    moved = dict(state)
    by = 5000 // (technique.ring * technique.slots) * technique.ring * technique.slots
    held = state["cache.frame"]
    in_sink = torch.arange(technique.slots) < technique.sink
    fixed_sink = cache == "sink"  # absolute positions: the distance to this sink is what the game's length changes
    moved["cache.next"] = state["cache.next"] + by
    moved["cache.frame"] = torch.where(in_sink & (not fixed_sink), held, held + by)
    made, there = play(stream, state, 5, seed=4)[0], play(stream, moved, 5, seed=4)[0]
    assert torch.allclose(made, there, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cache", [SinkWindow(4, 1), RollingSink(5, 1, 1, 4)])
def test_five_thousand_frames_pass_without_error_or_growth(cache):
    stream = Stream(transformer(layers=1), cache, FewStep(FEW[:1], commit="last"), (2, 2), in_place=True)
    _, state = play(stream, started(stream), 10)
    sizes = {name: value.shape for name, value in state.items()}
    noise, steps = random(1, 64, 4, 2, 2, seed=0), []
    for tick in range(10, 5000):
        latents, state = stream.tick(state, noise[:, tick % 64 : tick % 64 + 1])
        steps.append(latents)
    assert int(state["cache.next"]) == 5000
    assert {name: value.shape for name, value in state.items()} == sizes
    spread = torch.cat(steps, 1).unflatten(1, (-1, 499)).std((0, 2, 3, 4, 5))
    assert torch.isfinite(spread).all() and spread.max() < 1.5 * spread.min()


def test_guidance_lies_on_the_line_between_without_and_with_the_prompt():
    model, cache = transformer(), CACHES["sink"]
    plain = Stream(model, cache, FewStep(FEW[:1]), SIZE)
    with_prompt, _ = play(plain, started(plain), 1)
    without, _ = play(plain, started(plain, seed=99), 1)
    for scale in (0.0, 1.0, 4.0):
        guided = Stream(model, cache, FewStep(FEW[:1]), SIZE, guidance=scale)
        made, _ = play(guided, started(guided), 1)
        assert torch.allclose(made, without + scale * (with_prompt - without), atol=1e-4)


def test_after_a_reprime_nothing_in_flight_is_left():
    """The block after a re-prime follows from the cache and the noise alone, and the steady state comes back."""
    stream = Stream(transformer(), CACHES["rolling"], Rolling(ROLLING), SIZE)
    _, state = play(stream, started(stream), 6)
    spoilt = {**state, "flight": state["flight"] + 100}
    made = [play(stream, stream.reprime(s), 7, seed=2)[0] for s in (state, spoilt)]
    assert torch.equal(*made)
    _, after = play(stream, stream.reprime(state), 7, seed=2)
    assert stream.plan(after) == Rolling(ROLLING).steady()


def test_a_reprimed_block_is_made_alone_as_in_block_mode():
    model, cache = transformer(), CACHES["rolling"]
    rolling, block = Stream(model, cache, Rolling(ROLLING), SIZE), Stream(model, cache, FewStep(ROLLING), SIZE)
    _, state = play(rolling, started(rolling), 6)
    first = play(rolling, rolling.reprime(state), 1, seed=2)[0]
    assert torch.equal(first, play(block, state, 1, seed=2)[0])


def test_a_block_without_a_commit_pass_leaves_its_last_noisy_keys():
    model, cache = transformer(layers=1), SinkWindow(window=6, chunk=2)
    stream = Stream(model, cache, diagonal(FlowTable(), ((1000, 600), (1000,))), SIZE)
    state = started(stream)
    noise = random(1, 4, 4, *SIZE, seed=0)
    _, after = stream.tick(state, noise)
    # Layer 0 sees nothing but its input, so its keys tell which pass they are from.
    levels = stream.levels((stream.schedule.plan(0).rows[1][0],) * 2)
    flow = stream.model(noise[:, :2], stream.levels((stream.schedule.plan(0).rows[0][0],) * 2), *_alone(stream, state))[
        0
    ]
    clean = noise[:, :2] - flow
    sigma = stream.schedule.plan(0).rows[1][0].sigma
    _, fresh = stream.model((1 - sigma) * clean + sigma * noise[:, 2:], levels, *_alone(stream, state))
    assert torch.allclose(after["kv.self.k"][:, :, :2], fresh["kv.self.k"], atol=1e-5)


def _alone(stream, state):
    from worldmodel.cache.attention import Group, Seen
    from worldmodel.families.wan_transformer import Conditions

    turns = stream.model.turns(torch.arange(2)[None], SIZE)
    cross = {name: state[name] for name in state if name.startswith("cross.")}
    return (Group(slice(0, 2), turns, (Seen(slice(0, 2)),)),), Conditions(cross)


def test_the_wrong_amount_of_noise_is_refused():
    stream = Stream(transformer(), CACHES["sink"], FewStep(FEW), SIZE)
    with pytest.raises(SpecError, match="takes 2 noise blocks of 2 frames: got 3"):
        stream.tick(started(stream), torch.zeros(1, 3, 4, *SIZE))


def test_a_stream_without_a_prompt_says_so():
    stream = Stream(transformer(), CACHES["sink"], FewStep(FEW), SIZE)
    with pytest.raises(SpecError, match="no prompt yet"):
        play(stream, stream.empty(), 1)

"""Recorded passes and ticks give the same blocks as the transformer, and leave alone what they do not know."""

import pytest
import torch
from small_streams import ACTIONS, FEW, ROLLING, SIZE, play, prompt, random, started, transformer

from export.traced_pass import TracedPass
from export.traced_tick import TracedTick
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import SinkWindow
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.rolling import Rolling
from worldmodel.schedule.sampler import Stream


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "cache, schedule",
    [
        (SinkWindow(7, 1, 2), FewStep(FEW)),
        (EmaSink(6, 2, 2), FewStep(FEW)),
        (RollingSink(10, 2, 2, 9), Rolling(ROLLING)),
        (SinkWindow(6, 0, 2), FewStep(FEW, commit="last")),
    ],
)
@torch.inference_mode()
def test_recorded_passes_give_the_same_blocks(cache, schedule, fused):
    fused = fused and schedule.commit == "pass"
    model = transformer()
    traced = TracedPass(model)
    made = [play(stream, started(stream), 12)[0] for stream in (
        Stream(model, cache, schedule, SIZE, fused=fused), Stream(traced, cache, schedule, SIZE, fused=fused)
    )]  # fmt: skip
    assert traced.programs
    assert torch.allclose(*made, atol=1e-5)


@pytest.mark.parametrize(
    "cache, schedule, fused",
    [
        (SinkWindow(5, 1, 2), FewStep(FEW), True),
        (EmaSink(6, 2, 2), FewStep(FEW), True),
        (EmaSink(6, 2, 2), FewStep(FEW), False),
        (RollingSink(6, 2, 2, 12), Rolling(ROLLING), True),
        (RollingSink(10, 2, 2, 9), Rolling(ROLLING), True),
        (SinkWindow(6, 0, 2), FewStep(FEW, commit="last"), False),
    ],
)
@torch.inference_mode()
def test_recorded_ticks_give_the_same_blocks(cache, schedule, fused):
    plain, traced = (Stream(transformer(), cache, schedule, SIZE, fused=fused) for _ in range(2))
    traced = TracedTick(traced)
    made = [play(stream, started(stream), 20)[0] for stream in (plain, traced)]
    assert traced.programs
    assert torch.allclose(*made, atol=1e-5)


@torch.inference_mode()
def test_recorded_ticks_follow_prompts_and_re_primes_and_players():
    """Other states go through the same recordings: nothing of the ticks that were recorded is left in them."""

    def play_on(stream):
        state = started(stream, batch=2)
        latents, state = play(stream, state, 14)
        state = stream.recache(state, prompt(7, batch=2))
        more, state = play(stream, state, 8, seed=1)
        again, state = play(stream, stream.reprime(state), 12, seed=2)
        return torch.cat([latents, more, again], 1), state

    for cache, schedule in ((RollingSink(6, 2, 2, 12), Rolling(ROLLING)), (EmaSink(6, 2, 2), FewStep(FEW))):
        plain = Stream(transformer(), cache, schedule, SIZE, fused=True)
        traced = TracedTick(Stream(transformer(), cache, schedule, SIZE, fused=True))
        wanted, state = play_on(plain)
        got, after = play_on(traced)
        assert traced.programs and torch.allclose(got, wanted, atol=1e-5)
        assert set(after) == set(state)
        assert all(torch.allclose(after[name].float(), part.float(), atol=1e-4) for name, part in state.items())


@torch.inference_mode()
def test_what_is_steered_or_guided_is_not_recorded():
    for differences, steer in (({"guidance": 3.0}, None), ({}, keys_and_mouse)):
        model = transformer(actions=ACTIONS) if steer else transformer()
        plain, own = (Stream(model, SinkWindow(6, 0, 2), FewStep(FEW), SIZE, **differences) for _ in range(2))
        traced = TracedTick(own)
        made = [play(stream, started(stream), 9, steer=steer)[0] for stream in (plain, traced)]
        assert torch.allclose(*made, atol=1e-5) and not traced.programs


def keys_and_mouse(tick: int) -> dict[str, torch.Tensor]:
    return {name: random(1, 2, 12, n, seed=tick + n) for name, n in (("mouse", 2), ("keyboard", 3))}


@torch.inference_mode()
def test_what_it_does_not_know_is_left_to_the_transformer():
    model = transformer(actions=ACTIONS)
    traced = TracedPass(model)
    made = [play(stream, started(stream), 5, steer=keys_and_mouse)[0] for stream in (
        Stream(model, SinkWindow(6, 0, 2), FewStep(FEW), SIZE), Stream(traced, SinkWindow(6, 0, 2), FewStep(FEW), SIZE)
    )]  # fmt: skip
    assert torch.equal(*made) and not traced.programs

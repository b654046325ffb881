"""A recorded pass gives the same blocks as the transformer, and leaves alone what it does not know."""

import pytest
import torch
from small_streams import ACTIONS, FEW, ROLLING, SIZE, play, random, started, transformer

from export.traced_pass import TracedPass
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


@torch.inference_mode()
def test_what_it_does_not_know_is_left_to_the_transformer():
    model = transformer(actions=ACTIONS)
    traced = TracedPass(model)

    def steer(tick: int):
        return {name: random(1, 2, 12, n, seed=tick + n) for name, n in (("mouse", 2), ("keyboard", 3))}

    made = [play(stream, started(stream), 5, steer=steer)[0] for stream in (
        Stream(model, SinkWindow(6, 0, 2), FewStep(FEW), SIZE), Stream(traced, SinkWindow(6, 0, 2), FewStep(FEW), SIZE)
    )]  # fmt: skip
    assert torch.equal(*made) and not traced.programs

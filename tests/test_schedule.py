"""Schedules are tables: their levels are the published ones, and no block skips or repeats a step."""

import pytest

from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.first_pass_sink import FirstPassSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.errors import SpecError
from worldmodel.registry import CACHES, SCHEDULES, listing, refusal
from worldmodel.schedule.few_step import FewStep
from worldmodel.schedule.moving_buffer import MovingBuffer
from worldmodel.schedule.plan import FlowTable, Level
from worldmodel.schedule.rolling import Rolling

TABLE = FlowTable(shift=5.0)
FIVE = TABLE.warp((1000, 800, 600, 400, 200))


def test_warped_lists_are_the_published_ones():
    warped = [level.timestep for level in TABLE.warp((1000, 800, 750, 666, 500, 333, 250, 200, 100, 0))]
    published = [1000, 952.38, 937.50, 908.84, 833.33, 713.98, 625.00, 555.56, 357.14]
    assert warped == pytest.approx(published, abs=0.005)


def test_the_level_of_timestep_0_is_not_quite_clean():
    assert TABLE.at(0) == Level(pytest.approx(0.00498, abs=1e-5), 0.0)


def lives(schedule, ticks: int, reprime_at: int | None = None) -> dict[int, list[float]]:
    """The sigmas that every emitted block was seen at, walking the plans as the sampler does."""
    seen: dict[int, list[float]] = {}
    phase, reprimed, first = 0, False, 0
    for tick in range(ticks):
        if tick == reprime_at:
            for lane in range(schedule.plan(phase, reprimed).flying):
                seen.pop(first + lane, None)
            phase, reprimed = 0, True
        plan = schedule.plan(phase, reprimed)
        for row in plan.rows:
            for lane, level in enumerate(row):
                seen.setdefault(first + lane, []).append(round(level.sigma, 6))
        first, phase = first + 1, phase + 1
    return {block: sigmas for block, sigmas in seen.items() if block < first}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5])
@pytest.mark.parametrize("reprime_at", [None, 1, 3, 7])
def test_every_block_of_a_rolling_window_takes_every_step_once(alone, blocks, reprime_at):
    schedule = Rolling(FIVE[:blocks], reprime_alone=alone)
    want = [round(level.sigma, 6) for level in FIVE[:blocks]]
    assert all(life == want for life in lives(schedule, 20, reprime_at).values())
    after = schedule.plan(schedule.steady_from, reprimed=reprime_at is not None)
    assert after == schedule.steady()


def test_a_plan_starts_where_the_last_one_left_off():
    schedule = Rolling(FIVE)
    for reprimed in (False, True):
        for tick in range(10):
            now, following = schedule.plan(tick, reprimed), schedule.plan(tick + 1, reprimed)
            waiting = list(now.after)
            assert following.flying == len(waiting)
            entering = [
                next(row[lane] for row in following.rows if lane < len(row)) for lane in range(following.flying)
            ]
            assert entering == waiting


def test_a_response_costs_one_pass_less_every_tick_until_the_window_is_full():
    passes = [Rolling(FIVE).plan(tick, reprimed=True).passes for tick in range(8)]
    assert passes == [5, 5, 4, 3, 2, 1, 1, 1]


def test_a_finite_clip_drains_from_the_noisy_side():
    schedule = Rolling(FIVE)
    assert [schedule.drain(flying).lanes for flying in (4, 3, 2, 1)] == [4, 3, 2, 1]
    assert schedule.drain(1).rows == ((FIVE[-1],),)
    with pytest.raises(SpecError, match="nothing to drain"):
        schedule.drain(5)


@pytest.mark.parametrize("chunks, steps", [(1, 8), (4, 1), (3, 2)])
def test_a_chunk_passes_through_every_segment_of_a_moving_buffer(chunks, steps):
    schedule = MovingBuffer(chunks, steps)
    even = [round(1 - i / (chunks * steps), 6) for i in range(chunks * steps)]
    assert all(life == pytest.approx(even) for life in lives(schedule, 12).values())


def test_early_blocks_take_longer_lists():
    schedule = FewStep(FIVE[:2], (FIVE, FIVE[:3]))
    assert [schedule.plan(tick).passes for tick in range(4)] == [5, 3, 2, 2]
    assert schedule.plan(0, reprimed=True).passes == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: FewStep(()),
        lambda: FewStep(FIVE[::-1]),
        lambda: Rolling((FIVE[0], FIVE[0])),
        lambda: MovingBuffer(0),
        lambda: MovingBuffer(2, bounds=(1.0, 0.0)),
        lambda: FlowTable(shift=0),
    ],
)
def test_tables_that_make_no_sense_are_refused(make):
    with pytest.raises(SpecError):
        make()


def test_the_list_tells_what_a_tick_costs_and_when_an_action_shows():
    """Against algorithms' comparison: forwards per block, latent frames of work, blocks until an action shows."""
    told = {one["name"]: (one["nfe"], one["work_frames"] / one["chunk_frames"], one["response_ticks"])
            for one in listing()["schedules"]}  # fmt: skip
    assert told["chunk_wise"] == (5, 5, 0)
    assert told["frame_wise_2"] == (3, 3, 0)
    assert told["frame_wise_1"] == (2, 2, 0)
    assert told["rolling"] == (2, 6, 4)
    assert told["diagonal"] == (2, 2, 0)


def test_everything_listed_has_a_name_a_licence_and_something_to_combine_with():
    for kind, entries in listing().items():
        assert entries, kind
        for one in entries:
            assert one["name"] and one["licence"], one
            assert one["combines_with"], one


def test_an_impossible_combination_is_refused_with_the_reason():
    rolling = SCHEDULES["rolling"].published
    assert "do not fit into the 12 frames" in str(refusal(RollingSink(24, 3, 3, attention=12), rolling))
    assert "no commit pass to fuse" in str(
        refusal(CACHES["window"].published, SCHEDULES["diagonal"].published, fused=True)
    )
    assert "cannot be fused" in str(refusal(EmaSink(6, 3, 3), rolling, fused=True))
    wide = FirstPassSink(9, 4, 3)
    assert refusal(wide, SCHEDULES["chunk_wise"].published) is None
    for schedule, fused in (("rolling", False), ("diagonal", False), ("chunk_wise", True)):
        assert "keeps a block's first pass" in str(refusal(wide, SCHEDULES[schedule].published, fused))
    assert refusal(FirstPassSink(9, 3, 3), rolling, fused=True) is None  # a sink within one block is an ordinary one
    assert refusal(CACHES["rolling_sink"].published, rolling, fused=True) is None

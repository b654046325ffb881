"""The governor keeps deadlines that can be kept, and does what the player chose where none can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.governor import ANSWERS, POLICIES, Governor, Wishes, choose

COSTS = {"tick": 0.010, "reprime": 0.030, "tick_fast": 0.005}


@pytest.mark.parametrize(
    "left, changed, answer, policy, graph",
    [
        (0.040, False, "auto", "slow", "tick"),  # steady input costs one pass
        (0.040, True, "auto", "slow", "reprime"),
        (0.020, True, "auto", "slow", "tick"),  # no time: the key shows later, the frame is not late
        (0.020, True, "rollback", "slow", "reprime"),  # the key above all
        (0.040, True, "late", "slow", "tick"),
        (0.040, True, "off", "slow", "tick"),
        (0.007, False, "auto", "slow", "tick"),  # too slow: the world waits
        (0.007, False, "auto", "degrade", "tick_fast"),
        (0.001, True, "auto", "degrade", "tick_fast"),  # nothing fits: the quickest
    ],
)
def test_the_best_graph_that_fits_is_taken(left, changed, answer, policy, graph):
    assert choose(COSTS, left, changed, Wishes(answer, policy)) == graph


@given(
    st.dictionaries(st.sampled_from(["reprime", "tick_fast"]), st.floats(0, 0.1)),
    st.floats(0, 0.1), st.floats(-0.01, 0.2), st.booleans(), st.sampled_from(ANSWERS), st.sampled_from(POLICIES),
)  # fmt: skip
def test_no_deadline_is_missed_that_could_be_met(more, tick, left, changed, answer, policy):
    costs = {"tick": tick, **more}
    graph = choose(costs, left, changed, Wishes(answer, policy))
    forced = answer == "rollback" and changed and "reprime" in costs
    allowed = ["tick", *(["tick_fast"] if policy == "degrade" and "tick_fast" in costs else [])]
    if not forced and any(costs[name] <= left for name in allowed):
        assert costs[graph] <= left


def test_a_trace_of_costs_gives_the_frames_that_it_should():
    """A machine gets busy for a while: ticks become dear, are degraded, and recover when it is forgotten."""
    governor = Governor(("tick", "tick_fast"), Wishes(policy="degrade"))
    made = []
    for tick in range(120):
        graph = governor.choose(0.016, changed=False)
        busy = 40 <= tick < 50
        cost = (0.010 if graph == "tick" else 0.004) * (3 if busy else 1)
        made.append(graph)
        governor.measured(graph, cost)
    assert made[:41] == ["tick"] * 41  # the first dear one was not foreseen
    assert made[41] == "tick_fast"
    assert made[-30:] == ["tick"] * 30


def test_input_is_read_as_late_as_the_dearest_graph_allows():
    governor = Governor(("tick", "reprime"))
    assert governor.lead(0.04) == pytest.approx(0.001)
    governor.measured("tick", 0.005)
    governor.measured("reprime", 0.010)
    assert governor.lead(0.04) == pytest.approx(0.013)
    governor.measured("reprime", 1.0)
    assert governor.lead(0.04) == pytest.approx(0.036)  # never before the frame that is on the screen


@pytest.mark.parametrize("wrong", [{"answer": "never"}, {"policy": "fast"}])
def test_an_unknown_wish_lists_the_known_ones(wrong):
    with pytest.raises(UsageError, match="must be one of"):
        Wishes(**wrong)

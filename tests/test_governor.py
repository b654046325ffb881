"""The governor keeps deadlines that can be kept, and does what the player chose where none can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.governor import ANSWERS, POLICIES, Governor, Wishes, choose, choose_for_all

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


@pytest.mark.parametrize(
    "left, answer, policy, graphs",
    [
        (0.050, "auto", "slow", ["tick", "reprime", "tick"]),
        (0.035, "auto", "slow", ["reprime"] * 3),  # no time for two calls: all ride along
        (0.020, "auto", "slow", ["tick"] * 3),
        (0.007, "auto", "degrade", ["tick_fast"] * 3),
        (0.001, "auto", "degrade", ["tick_fast"] * 3),  # nothing fits: the quickest
        (0.050, "late", "slow", ["tick"] * 3),
        (0.020, "rollback", "slow", ["reprime"] * 3),
    ],
)
def test_players_of_a_batch_share_calls(left, answer, policy, graphs):
    assert choose_for_all(COSTS, left, [False, True, False], Wishes(answer, policy)) == tuple(graphs)


def test_a_trace_of_costs_of_a_batch_meets_every_deadline_that_can_be_met():
    """Calls get dear and cheap again while ever more players press something new."""
    wishes, made = Wishes("auto", "degrade"), set()
    for tick in range(300):
        costs = {graph: seconds * (1 + tick % 60 / 20) for graph, seconds in COSTS.items()}
        changed = [(tick + player) % 7 < tick // 50 for player in range(8)]
        graphs = choose_for_all(costs, 0.04, changed, wishes)
        assert sum(costs[graph] for graph in set(graphs)) <= 0.04 and len(graphs) == 8
        assert all(graph != "tick_fast" for graph in graphs) or costs["tick"] > 0.04
        made.add(frozenset(graphs))
    assert made == {frozenset(graphs) for graphs in (["tick"], ["reprime"], ["tick", "reprime"])}


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
    governor = Governor(("tick", "reprime", "tick_fast"))
    assert governor.graphs == ("tick", "reprime")  # fewer steps are not what the player chose
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

"""benchmarks/precisions.py: what it compares, and what it says of it."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "precisions.py"))


def test_figures_are_compared_one_by_one_the_most_different_first():
    report = {
        "scenes": {"A": {"on_road": 0.5, "collapsed": False, "drift": [{"from": 0, "distance": 1}]}},
        "world": "w",
    }
    exact = SCRIPT["figures"]({**report, "prompt": {"ticks": 10}, "settings": {"seed": 3}})
    assert exact == {"scenes A on_road": 0.5, "scenes A collapsed": 0.0, "prompt ticks": 10.0}
    rows = SCRIPT["compared"](exact, {**exact, "scenes A on_road": 0.47, "new": 1.0})
    assert [round(row["difference"], 3) for row in rows] == [0.06, 0, 0]
    text = SCRIPT["table"](rows, 0.02)
    assert "| scenes A on_road | 0.5 |  | 0.47 | 6.0% |" in text
    assert text.endswith("2 of 3 figures within 2%, 0 of the others within what chance does to float32")


def test_what_chance_does_stands_beside_a_difference():
    exact = {"on_road": 0.5, "stall": 0.1, "coasts": 1.0, "psnr": 30.0}
    other = {**exact, "on_road": 0.47, "stall": 0.2}
    told = {"scenes": {"A": {"intervals": {"on_road": [0.4, 0.6], "stall": [0.05, 0.15], "coasts": None}}}}
    sure = SCRIPT["intervals"](told)
    assert set(sure) == {"scenes A on_road", "scenes A stall"}  # of one rollout nothing is known
    named = [{f"scenes A {name}": value for name, value in report.items()} for report in (exact, other)]
    rows = SCRIPT["compared"](*named, sure)
    assert [(row["figure"], row["chance"]) for row in rows[:2]] == [
        ("scenes A stall", False),
        ("scenes A on_road", True),
    ]
    text = SCRIPT["table"](rows, 0.02)
    assert "| scenes A on_road | 0.5 | 0.4 to 0.6 | 0.47 | 6.0% |" in text
    assert text.endswith("2 of 4 figures within 2%, 1 of the others within what chance does to float32")
    assert SCRIPT["table"](SCRIPT["compared"](exact, exact), 0.02).endswith("4 of 4 figures within 2%")


def test_a_figure_of_nothing_is_not_divided_by():
    assert SCRIPT["apart"](0.0, 0.0) == 0 and SCRIPT["apart"](0.0, 1.0) == 100

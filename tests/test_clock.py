"""The clock keeps an absolute schedule and counts what is late. Time here is a number that the test moves."""

from __future__ import annotations

import pytest

from runtime.clock import SPIN, Clock, settle


class Time:
    """Seconds that pass only when somebody sleeps, spins or works. A sleeper is woken `oversleep` late."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.seconds, self.oversleep, self.slept = 100.0, oversleep, 0

    def now(self) -> float:
        self.seconds += 1e-6  # reading takes time, so that spinning ends
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += 1
        self.seconds += seconds + self.oversleep


@pytest.mark.parametrize("tick_hz", [25, 60, 17.5])
def test_ten_minutes_of_ticks_do_not_drift(tick_hz):
    time = Time(oversleep=0.3e-3)
    clock = Clock(tick_hz, time.now, time.sleep)
    clock.wait()
    first = time.seconds
    ticks = int(600 * tick_hz)
    for _ in range(ticks):
        time.seconds += 0.005  # the tick's own work
        clock.wait()
    assert time.seconds - first == pytest.approx(ticks / tick_hz, abs=10e-6)
    assert clock.late_ticks == 0


def test_it_sleeps_first_and_spins_only_at_the_end():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    clock.wait()
    slept = time.slept
    clock.wait()
    assert time.slept == slept + 1
    assert SPIN < 0.001


def test_a_sleeper_woken_early_goes_back_to_sleep():
    time = Time()
    naps = []

    def nap(seconds: float) -> None:  # an event came: only a part of the time was slept
        naps.append(seconds)
        time.seconds += seconds / 2

    clock = Clock(25, time.now, nap)
    clock.wait()
    begun = time.seconds
    clock.wait()
    assert time.seconds - begun == pytest.approx(0.04, abs=1e-5) and len(naps) > 2


@pytest.mark.parametrize(
    "now, expected",
    [
        (0.9, (1.0, False)),  # early: wait for it
        (1.0, (1.0, False)),  # just in time
        (1.02, (1.0, True)),  # late, but within a period: the schedule stays
        (1.04, (1.04, True)),  # a whole period late: the schedule moves
        (9.0, (9.0, True)),
    ],
)
def test_a_late_tick_is_counted_and_the_schedule_moves_only_after_a_whole_period(now, expected):
    assert settle(due=1.0, period=0.04, now=now) == expected


def test_after_a_short_delay_the_next_tick_is_on_the_old_schedule():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    clock.wait()
    first = time.seconds
    time.seconds += 0.05
    clock.wait()  # 10 ms late, at once
    clock.wait()
    assert time.seconds - first == pytest.approx(0.08, abs=1e-5)
    assert clock.late_ticks == 1


def test_after_a_long_delay_the_world_does_not_rush():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    clock.wait()
    time.seconds += 1.0
    clock.wait()
    resumed = time.seconds
    clock.wait()
    assert time.seconds - resumed == pytest.approx(0.04, abs=1e-5)
    assert clock.late_ticks == 1


def test_a_pause_is_not_lateness():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    clock.wait()
    time.seconds += 60
    clock.restart()
    clock.wait()
    assert clock.late_ticks == 0


def test_input_is_read_the_lead_before_the_frame_is_due():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    clock.wait(0.010)
    clock.hold()
    first = time.seconds
    for _ in range(1000):
        clock.wait(0.010)
        assert clock.due - time.seconds == pytest.approx(0.010, abs=1e-5)
        time.seconds += 0.007  # the tick
        clock.hold()
        assert time.seconds == pytest.approx(clock.due, abs=1e-5)
    assert time.seconds - first == pytest.approx(40, abs=1e-4) and clock.late_ticks == 0


def test_a_frame_that_is_shown_late_is_counted_once():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    for cost in (0.005, 0.030, 0.005, 0.005):
        clock.wait(0.010)
        time.seconds += cost
        clock.hold()
    assert clock.late_ticks == 1  # and the next one is on the schedule again


def test_a_patient_clock_catches_up():
    time = Time()
    clock = Clock(25, time.now, time.sleep)
    clock.patience = 5
    clock.wait()
    first = time.seconds
    time.seconds += 0.15
    for _ in range(5):
        clock.wait()
    assert time.seconds - first == pytest.approx(0.2, abs=1e-5)

"""The clock pair."""

import time

from callscope.clock import clock_pair


def test_pair_agrees_with_the_system_clocks() -> None:
    before_monotonic, before_real = time.monotonic_ns(), time.time_ns()
    pair = clock_pair()
    after_monotonic, after_real = time.monotonic_ns(), time.time_ns()
    assert before_monotonic <= pair.monotonic_ns <= after_monotonic
    assert before_real <= pair.realtime_ns <= after_real


def test_counter_advances_with_the_clock() -> None:
    first = clock_pair()
    time.sleep(0.02)
    second = clock_pair()
    ticks, elapsed = second.tsc - first.tsc, second.monotonic_ns - first.monotonic_ns
    assert elapsed >= 20_000_000
    assert 0.3 < ticks / elapsed < 10  # a time-stamp counter of 0.3 to 10 GHz

"""What the tables say."""

import paddle
import pytest

from ppvilg.benchmark.timing import Timing, interleaved, peak_of, table


def test_speed_is_the_median_of_each_rounds_ratio():
    first = Timing("first", [1.0, 2.0, 4.0], 8, "things", 2**20)
    second = Timing("second", [0.5, 0.5, 4.0], 8, "things", None)
    rows = table([first, second]).splitlines()[1:]
    assert rows[0].split()[-1] == "1.00"
    assert rows[1].split()[-1] == "2.00", "2, 4 and 1 times as fast"
    assert "1 MB" in rows[0]
    assert "16.00 things/s" in rows[1]


def test_runs_take_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = interleaved(runs, 3, 1, "calls")
    assert calls == list("ab") * 4
    assert [len(timing.seconds) for timing in timings] == [3, 3]


def test_peak_counts_what_is_allocated_at_once():
    def run():
        kept = paddle.zeros([1000, 1000])
        for _ in range(3):
            kept = kept + 1

    assert peak_of(run) == pytest.approx(8e6, rel=0.1)

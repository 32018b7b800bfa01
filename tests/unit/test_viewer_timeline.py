"""What a window of a timeline shows, against all calls one by one, at every zoom."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callscope.errors import TraceError
from callscope.viewer import tiles
from callscope.viewer.rows import Rows
from callscope.viewer.tiles import band_of, ensure_tiles
from callscope.viewer.timeline import Timeline, View, Window
from tests.builders.viewer import busy


def timeline_of(path: Path, clock: bool = True, rows_a_group: int = 64) -> tuple[Timeline, Any]:
    """The timeline of a built trace whose table has small row groups, and all its calls."""
    table = path / "calls/calls-1-0.parquet"
    calls = pq.read_table(table)
    pq.write_table(calls, table, row_group_size=rows_a_group)
    rows = Rows(path / "calls", clock)
    ensure_tiles(rows, path / "calls")
    return Timeline(rows, path / "calls/view"), np.concatenate(list(rows.stream(1)))


def check_view(view: View, window: Window, every: Any) -> None:
    """A view against all calls, one by one."""
    end = every["start"] + np.maximum(every["duration"], 1)
    lanes = (every["depth"] >= window.lane) & (every["depth"] < window.lane + window.lanes)
    inside = every[lanes & (every["start"] < window.end) & (end > window.begin)]
    shown = inside[inside["duration"] >= max(window.pixel, view.bin_ns)]
    assert set(shown["call"]) <= set(view.calls["call"]) <= set(inside["call"])
    assert list(view.calls["start"]) == sorted(view.calls["start"])
    expected = {call["call"]: call for call in every}
    assert all(call == expected[call["call"]] for call in view.calls)
    if view.finest:
        assert len(view.calls) + int(view.bins["calls"].sum()) == len(inside)
    else:  # tiles reach over the edges of the window
        margin = view.bin_ns
        near = every[lanes & (every["start"] < window.end + margin) & (end > window.begin - margin)]
        assert len(inside) - margin <= len(view.calls) + int(view.bins["calls"].sum()) <= len(near)
    assert all(view.bins["bin"] * view.bin_ns < window.end - window.begin)
    assert set(view.bins["function"]) <= set(every["function"])


@pytest.mark.parametrize("clock", [True, False])
def test_a_short_thread_is_shown_call_by_call(tmp_path: Path, clock: bool) -> None:
    builder = busy(1, 700)
    builder.clock = clock
    timeline, every = timeline_of(builder.write(tmp_path / "t.trace"), clock)
    assert timeline.lanes(1) == int(every["depth"].max()) + 1
    end = int((every["start"] + every["duration"]).max())
    for begin, stop, pixels in [
        (0, end, 10),
        (0, end, 4000),
        (end // 3, end // 2, 50),
        (end - 1, end + 9, 3),
        (end * 2, end * 3, 5),
    ]:
        for lane, lanes in [(0, 64), (2, 3)]:
            window = Window(begin, stop, pixels, lane, lanes)
            check_view(timeline.view(1, window), window, every)
    assert not len(timeline.view(7, Window(0, 9, 9)).calls)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_thread_is_shown_by_level_of_detail(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SHORT_THREAD", 100)
    monkeypatch.setattr(tiles, "CALLS_A_TILE", 1)
    timeline, every = timeline_of(busy(seed, 3000).write(tmp_path / "t.trace"))
    end = int((every["start"] + every["duration"]).max())
    choose = random.Random(seed)
    coarse = 0
    span = end
    while span > 4:
        for _ in range(4):
            begin = choose.randrange(max(end - span, 1))
            window = Window(begin, begin + span, choose.choice([20, 300]), 0, 64)
            view = timeline.view(1, window)
            check_view(view, window, every)
            coarse += not view.finest
        span //= 3
    assert coarse > 4
    whole = timeline.view(1, Window(0, end + 1, 30))
    assert len(whole.calls) + int(whole.bins["calls"].sum()) == len(every)


def test_too_many_calls_for_one_look_are_shown_by_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SHORT_THREAD", 100)
    monkeypatch.setattr(tiles, "CALLS_A_TILE", 1)
    monkeypatch.setattr("callscope.viewer.timeline.MOST_ROWS", 10)
    timeline, every = timeline_of(busy(3, 2000).write(tmp_path / "t.trace"))
    window = Window(0, 1000, 1000)
    view = timeline.view(1, window)
    assert not view.finest and view.bin_ns > 1
    check_view(view, window, every)


def test_only_the_longest_of_too_many_calls_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callscope.viewer.timeline.MOST_CALLS", 5)
    timeline, every = timeline_of(busy(2, 500).write(tmp_path / "t.trace"))
    end = int((every["start"] + every["duration"]).max())
    view = timeline.view(1, Window(0, end, 4000))
    assert sorted(view.calls["duration"]) == sorted(every["duration"])[-5:]
    assert len(view.calls) + int(view.bins["calls"].sum()) == len(every)


@given(st.lists(st.integers(0, (1 << 63) - 1), min_size=1))
def test_bands_are_powers_of_four(durations: list[int]) -> None:
    for duration, band in zip(durations, band_of(np.array(durations, np.int64)).tolist(), strict=True):
        assert 4**band <= max(duration, 1) < 4 ** (band + 1)


def test_the_index_is_made_again_when_it_is_missing_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "SHORT_THREAD", 10)
    path = busy(1, 500).write(tmp_path / "t.trace")
    timeline_of(path)
    index = path / "calls/view"
    assert (index / "1/meta.json").stat().st_mode & 0o077 == 0 or index.stat().st_mode & 0o077 == 0
    before = {file.name: file.read_bytes() for file in (index / "1").iterdir()}
    (index / "meta.json").write_text("{}")
    (index / "1/tiles-3").unlink(missing_ok=True)
    timeline_of(path)
    assert {file.name: file.read_bytes() for file in (index / "1").iterdir()} == before
    (index / "1/meta.json").write_text("[")
    with pytest.raises(TraceError, match="delete"):
        timeline_of(path)

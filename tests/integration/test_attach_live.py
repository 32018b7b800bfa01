"""Attaching to busy programs again and again: no answer of theirs is wrong or late, their code is as before, and the
traces make sense.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from callscope.recording.attach import Attachment, attach
from callscope.recording.options import RecordOptions
from tests.builders.compilers import have
from tests.builders.live import NEEDS, PROGRAMS, live
from tests.builders.tracing import read_calls
from tests.integration.test_attach import changed_code

RUNNING, UNWOUND = 3, 2
MOST_OPEN = 64
"""calls of a thread that may have begun before the recording, or not have ended with it"""
QUICK = {"python3", "redis-server", "nginx"}
THROWS = {"redis-server": set(), "nginx": set(), "threads": {"descend(int)"}}
"""What exceptions leave, of programs where that is known; in the others anything may be."""


def check_balance(trace: Path, name: str) -> None:
    """Every call has ended but the last of each thread, and none as it could not have."""
    calls = read_calls(trace, ("ended_by", "function_id"))
    functions = {
        row["function_id"]: row["name"].split(" ")[-1]
        for row in pq.read_table(trace / "calls/functions.parquet", columns=["function_id", "name"]).to_pylist()
    }
    assert not json.loads((trace / "calls/meta.json").read_text())["warnings"]
    unwound: set[str] = set()
    for rows in calls.values():
        assert np.count_nonzero(rows["ended_by"] == RUNNING) <= MOST_OPEN
        unwound |= {
            functions[number] for number in np.unique(rows["function_id"][rows["ended_by"] == UNWOUND]).tolist()
        }
    if name in THROWS:
        assert unwound <= THROWS[name]


def record_again_and_again(name: str, directory: Path, rounds: int, seconds: float) -> None:
    """Attach, record, detach; the longest standstill goes to standard output."""
    if not have(*NEEDS[name]):
        pytest.skip(f"needs {' and '.join(NEEDS[name])}")
    stops = []
    with live(name, directory) as program:
        for number in range(rounds):
            trace = directory / "trace"
            options = RecordOptions(command=(str(program.pid),), output=trace, follow=False)
            result = attach(options, Attachment(seconds))
            assert changed_code(program.pid) == [], number
            assert result.counts.calls > 0
            assert not result.counts.lost
            stops += result.still_ms
            if number % 25 == 0 and seconds < 1:
                check_balance(trace, name)
            shutil.rmtree(trace)
    print(f"{name}: {rounds} times {seconds} s, stopped for {np.median(stops):.1f} ms, at most {max(stops):.1f} ms")


@pytest.fixture
def directory(tmp_path: Path, plan_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs and traces lie; plans are those of this test session."""
    monkeypatch.setenv("CALLSCOPE_CACHE", str(plan_cache))
    return tmp_path


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in PROGRAMS]
)
def test_busy_programs_are_attached_to(name: str, directory: Path) -> None:
    record_again_and_again(name, directory, 3, 0.2)


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_busy_programs_are_attached_to_a_hundred_times(name: str, directory: Path) -> None:
    record_again_and_again(name, directory, 100, 0.3)
    record_again_and_again(name, directory, 2, 5)

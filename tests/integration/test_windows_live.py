"""Windows programs in long recordings: limits, flight recorders by time, dumps of a program that goes on."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from callscope import format as records
from callscope.recording.compact import compact
from callscope.recording.directory import read_header
from callscope.recording.dump import write_dump
from callscope.trace.open import open_trace
from tests.builders.tracing import read_calls, tool_environment
from tests.builders.windows import Windows, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=lacking() or "")


def count(trace: Path) -> int:
    return sum(len(columns["call_id"]) for columns in read_calls(trace, ["call_id"]).values())


def test_recording_stops_at_its_size_and_what_there_is_can_be_compressed(windows: Windows, tmp_path: Path) -> None:
    outcome = windows.traced(tmp_path / "t", windows.programs["mingw"], "fib", "25", max_size=2 << 20)
    assert (outcome.output, outcome.status) == ("fib 75025\n", 7)
    assert read_header(tmp_path / "t" / "events")["stopped"] == records.STOP_SIZE
    calls = count(tmp_path / "t")
    assert 80_000 < calls < 100_000
    compact(tmp_path / "t")
    assert count(tmp_path / "t") == calls


def test_a_flight_recorder_by_time(windows: Windows, tmp_path: Path) -> None:
    command: list[str | Path] = [windows.programs["mingw"], "fib", "25"]
    outcome = windows.traced(tmp_path / "t", *command, keep_last_ns=1, max_size=4 << 20)
    assert (outcome.output, outcome.status) == ("fib 75025\n", 7)
    header = read_header(tmp_path / "t" / "events")
    assert header["ring_used"] < 8 and header["next_chunk"] > 15 and header["stopped"] == records.STOP_NONE


def test_a_program_is_dumped_while_it_runs(windows: Windows, tmp_path: Path) -> None:
    program, trace = windows.programs["mingw"], tmp_path / "t"
    environment = tool_environment(windows.cache) | windows.environment
    command = [
        sys.executable,
        "-m",
        "callscope",
        "record",
        "-q",
        "--keep-last",
        "4M",
        "-o",
        trace,
        program,
        "sleep",
        "6",
    ]
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(1)
    dumped = subprocess.run(
        [sys.executable, "-m", "callscope", "dump", program.name, "-o", str(tmp_path / "named")],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    write_dump(trace, tmp_path / "again", "a test")
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 0
    assert dumped.returncode == 0, dumped.stderr
    for name in ("named", "again"):
        assert open_trace(tmp_path / name).is_complete
        assert count(tmp_path / name) > 1000

"""Traces that are torn, foreign or no traces at all: one clear line, no Python traceback, and what can be saved is."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from callscope.format import CHUNK_BYTES, CHUNK_HEADER, ENTRY_EVENT
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import Outcome, callscope, count_calls, run_traced

COMMANDS = ("info", "report", "tree", "calls", "modules")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Path:
    directory = tmp_path_factory.mktemp("good")
    program = compile_program([TARGETS / "death.c"], directory / "death", ["-O2", "-pthread"])
    assert run_traced([program, "exit", "1000"], directory / "trace", plan_cache).status == 7
    return directory / "trace"


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "copy", ignore=shutil.ignore_patterns("calls"))
    return tmp_path / "copy"


def refused(outcome: Outcome) -> None:
    assert outcome.status == 1, outcome
    assert outcome.errors.startswith("callscope: error: "), outcome
    assert len(outcome.errors.strip().splitlines()) == 1, outcome


def survives(outcome: Outcome) -> bool:
    """Whether a command read the trace; if it did not, it said so in one line."""
    assert "Traceback" not in outcome.errors, outcome
    if outcome.status == 0:
        return True
    refused(outcome)
    return False


def write_version(trace: Path, version: object) -> None:
    session = json.loads((trace / "session.json").read_text())
    (trace / "session.json").write_text(json.dumps(session | {"version": version}))


def session_directory(trace: Path) -> None:
    (trace / "session.json").unlink()
    (trace / "session.json").mkdir()


def break_magic(trace: Path) -> None:
    with (trace / "events").open("r+b") as stream:
        stream.write(b"nonsense")


def break_events_version(trace: Path) -> None:
    with (trace / "events").open("r+b") as stream:
        stream.seek(8)
        stream.write(b"\xff\x00\x00\x00")


def empty(trace: Path) -> None:
    for path in trace.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


FIRST_EVENT = CHUNK_BYTES + CHUNK_HEADER.itemsize + ENTRY_EVENT.itemsize
"""bytes of an events file that holds its header and one event"""

BREAKAGES: dict[str, Callable[[Path], object]] = {
    "newer version": lambda trace: write_version(trace, 99),
    "version of a wrong type": lambda trace: write_version(trace, [1]),
    "empty directory": empty,
    "session of another program": lambda trace: (trace / "session.json").write_text('{"name": "x"}'),
    "session a directory": session_directory,
    "no events": lambda trace: (trace / "events").unlink(),
    "events of another format": break_magic,
    "events of another version": break_events_version,
    "events empty": lambda trace: (trace / "events").write_bytes(b""),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_cannot_be_read_is_refused_in_one_line(breakage: str, command: str, copy: Path, plan_cache: Path) -> None:
    if command not in ("info", "report"):
        breakage_sample = ("newer version", "empty directory", "no events")
        if breakage not in breakage_sample:
            pytest.skip("info and report show it")
    BREAKAGES[breakage](copy)
    refused(callscope([command, copy], plan_cache))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["missing", "a file", "a directory of other things"])
def test_what_is_no_trace_is_refused_in_one_line(what: str, command: str, tmp_path: Path, plan_cache: Path) -> None:
    path = tmp_path / "thing"
    if what == "a file":
        path.write_text("hello")
    elif what == "a directory of other things":
        path.mkdir()
        (path / "session.txt").write_text("hello")
    refused(callscope([command, path], plan_cache))


@pytest.mark.parametrize("text", ['{"format": ', "[]", "\x00\x01" * 100])
def test_calls_outlive_a_damaged_session(text: str, copy: Path, plan_cache: Path) -> None:
    (copy / "session.json").write_text(text)
    assert survives(callscope(["report", copy], plan_cache))
    info = callscope(["info", copy], plan_cache)
    assert survives(info)
    assert "session.json is damaged" in info.output
    threads = json.loads(callscope(["info", copy, "--format", "json"], plan_cache).output)
    assert threads["calls"] > 100_000


@pytest.mark.parametrize("seed", range(12))
def test_truncated_events_are_salvaged(seed: int, copy: Path, good: Path, plan_cache: Path) -> None:
    size = (copy / "events").stat().st_size
    at = random.Random(seed).choice((random.Random(seed).randrange(0, 9000), random.Random(seed + 99).randrange(size)))
    with (copy / "events").open("r+b") as stream:
        stream.truncate(at)
    if survives(callscope(["report", copy], plan_cache)):
        assert count_calls(copy, "counted") <= 100_000
    else:
        assert at < FIRST_EVENT, "a trace with its header and a chunk can be read"


def test_half_of_the_events_give_half_of_the_calls(copy: Path, plan_cache: Path) -> None:
    with (copy / "events").open("r+b") as stream:
        stream.truncate(2 << 20)
    assert survives(callscope(["report", copy], plan_cache))
    assert 30_000 < count_calls(copy, "counted") < 60_000


@pytest.mark.parametrize("name", ["events", "journal", "session.json"])
@pytest.mark.parametrize("seed", range(4))
def test_garbage_in_a_file_never_makes_a_traceback(seed: int, name: str, copy: Path, plan_cache: Path) -> None:
    """A hundred bytes of garbage at each of a few places, the first of them in the first 4 KiB."""
    chance = random.Random(seed)
    data = bytearray((copy / name).read_bytes()[: 8 << 20])
    used = min(len(data), 3 << 20)
    for limit in (4096, used, used, used):
        at = chance.randrange(min(limit, used))
        data[at : at + 100] = chance.randbytes(len(data[at : at + 100]))
    (copy / name).write_bytes(data)
    for command in ("info", "report"):
        survives(callscope([command, copy], plan_cache))


@pytest.mark.parametrize("keep", [0, 100, 4096, 5000])
def test_torn_journal(keep: int, copy: Path, plan_cache: Path) -> None:
    with (copy / "journal").open("r+b") as stream:
        stream.truncate(keep)
    survives(callscope(["report", copy], plan_cache))


def test_missing_function_tables_leave_stable_names(copy: Path, plan_cache: Path) -> None:
    shutil.rmtree(copy / "plans")
    survives(callscope(["report", copy], plan_cache))

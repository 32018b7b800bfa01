"""Recording that is switched on and off while programs run, and the coarse clock."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callscope.api import TraceTables
from callscope.recording.control import control_of
from callscope.trace.journal import Switch
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.switched_run import SwitchedVerdict, run_switched
from tests.builders.tracing import callscope, count_calls, run_plain, run_traced, tool_environment

ENOUGH = 10_000
"""switches of the long test"""


def assert_true(verdict: SwitchedVerdict) -> None:
    wrong = (verdict.wrong_parents, verdict.unmade, verdict.problems)
    assert wrong == (0, 0, []), f"{verdict.details.most_common(8)}"


@pytest.mark.parametrize("seed", [5, 12])
def test_no_parent_is_wrong_whenever_recording_goes_on_and_off(seed: int, tmp_path: Path, plan_cache: Path) -> None:
    verdict = run_switched(seed, tmp_path, plan_cache, 200_000)
    assert_true(verdict)
    assert verdict.switches >= 10
    assert verdict.calls > 1000


@pytest.mark.long
def test_no_parent_is_wrong_after_ten_thousand_switches(tmp_path: Path, plan_cache: Path) -> None:
    switches, seed = 0, 1
    while switches < ENOUGH:
        directory = tmp_path / str(seed)
        directory.mkdir()
        verdict = run_switched(seed, directory, plan_cache, 350_000)
        assert_true(verdict)
        switches += verdict.switches
        (directory / "trace/events").unlink()
        seed += 1


@contextmanager
def steps(directory: Path, cache: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    """The target switched.c, recorded: it runs a step for each line it is given."""
    program = compile_program([TARGETS / "switched.c"], directory / "switched", ["-O1", "-pthread"], "gcc")
    entry = "import sys; from callscope.cli.main import main; sys.exit(main())"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", entry, "record", "-o", directory / "trace", *options, program],
        stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=tool_environment(cache),
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.communicate("quit\n", timeout=30)


def step(process: "subprocess.Popen[str]", name: str) -> int:
    """Run a step; the program's process id."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def switched(directory: Path, cache: Path, command: str, pid: int) -> str:
    outcome = callscope([command, str(pid)], cache)
    assert outcome.status == 0, outcome.errors
    return outcome.errors


def test_only_what_happens_while_it_is_on_is_recorded(tmp_path: Path, plan_cache: Path) -> None:
    with steps(tmp_path, plan_cache, "--start-off") as process:
        pid = step(process, "first")
        assert switched(tmp_path, plan_cache, "on", pid) == ""
        assert "already" in switched(tmp_path, plan_cache, "on", pid)
        step(process, "second")
        step(process, "second")
        switched(tmp_path, plan_cache, "off", pid)
        step(process, "third")
    trace = tmp_path / "trace"
    assert [count_calls(trace, name) for name in ("first", "second", "third")] == [0, 2, 0]
    assert count_calls(trace, "worker") == 0  # of another thread: it began while recording was off
    assert [record.is_on for record in open_trace(trace).journal if isinstance(record, Switch)] == [False, True, False]


def test_calls_that_are_open_when_it_goes_off_say_so(tmp_path: Path, plan_cache: Path) -> None:
    with steps(tmp_path, plan_cache, "--switchable") as process:
        pid = step(process, "first")
        switched(tmp_path, plan_cache, "off", pid)
        step(process, "second")
        switched(tmp_path, plan_cache, "on", pid)
        step(process, "third")
    rows = callscope(["calls", str(tmp_path / "trace"), "--format", "json"], plan_cache).output.splitlines()
    calls = {row["function"]: row for row in map(json.loads, rows)}
    assert calls["main"]["ended_by"] == "off"
    assert "second" not in calls
    assert calls["third"]["parent_id"] is None
    assert calls["inner"]["parent_id"] == calls["third"]["call_id"]
    tree = callscope(["tree", str(tmp_path / "trace")], plan_cache).output
    assert "open when recording went off" in tree


def test_children_of_exec_begin_as_the_session_is(tmp_path: Path, plan_cache: Path) -> None:
    with steps(tmp_path, plan_cache, "--start-off") as process:
        step(process, "spawn")
        with control_of(tmp_path / "trace/events") as control:
            control.switch(True)
        time.sleep(0.2)
        step(process, "spawn")
    assert count_calls(tmp_path / "trace", "spawned") == 1


def test_who_cannot_be_switched_says_why(tmp_path: Path, plan_cache: Path) -> None:
    with steps(tmp_path, plan_cache) as process:
        pid = step(process, "first")
        outcome = callscope(["off", str(pid)], plan_cache)
        assert outcome.status == 1 and "--switchable" in outcome.errors and outcome.errors.count("\n") == 1
    with subprocess.Popen(["sleep", "20"]) as sleeper:
        outcome = callscope(["off", str(sleeper.pid)], plan_cache)
        sleeper.kill()
    assert outcome.status == 1 and "is not recorded" in outcome.errors
    assert "--clock" in callscope(["record", "--start-off", "--clock", "none", "true"], plan_cache).errors


def test_calls_of_python_obey(tmp_path: Path, plan_cache: Path) -> None:
    code = "def seen(): pass\nfor _ in range(1000): seen()"
    outcome = run_traced([sys.executable, "-c", code], tmp_path / "trace", plan_cache, recording={"start_off": True})
    assert outcome.status == 0
    rows = callscope(["report", str(tmp_path / "trace"), "--format", "json"], plan_cache)
    assert "seen" not in rows.output


def test_the_coarse_clock_keeps_the_order_and_tells_its_steps(tmp_path: Path, plan_cache: Path) -> None:
    with steps(tmp_path, plan_cache, "--clock", "coarse") as process:
        step(process, "first")
        time.sleep(0.3)
        step(process, "third")
    rows = callscope(["calls", str(tmp_path / "trace"), "--format", "json"], plan_cache).output.splitlines()
    calls = {row["function"]: row for row in map(json.loads, rows)}
    apart = calls["third"]["start_ns"] - calls["first"]["start_ns"]
    assert 200_000_000 < apart < 20_000_000_000
    facts = json.loads(callscope(["info", str(tmp_path / "trace"), "--format", "json"], plan_cache).output)
    assert facts["clock"] == "coarse" and 50_000 < facts["resolution_ns"] < 100_000_000
    for command in ("info", "report", "tree"):
        assert "coarse" in callscope([command, str(tmp_path / "trace")], plan_cache).output


def recorded(trace: Path, cache: Path) -> list[tuple[str, str | None, str]]:
    """Of every call its function, its parent's, and how it ended, in order."""
    rows = callscope(["calls", str(trace), "--format", "json"], cache).output.splitlines()
    calls = {row["call_id"]: row for row in map(json.loads, rows)}
    return [
        (
            row["function"],
            calls[row["parent_id"]]["function"] if row["parent_id"] is not None else None,
            row["ended_by"],
        )
        for row in calls.values()
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--trigger", "outer"], [("outer", None), ("middle", "outer"), ("leaf", "middle"), ("leaf", "outer")] * 3),
        (["--under", "outer"], [("middle", None), ("leaf", "middle"), ("leaf", None)] * 3),
        (["--trigger", "outer", "--sample", "1/2"],
         [("outer", None), ("middle", "outer"), ("leaf", "middle"), ("leaf", "outer")] * 2),
        (["--trigger", "middle", "--max-depth", "1"], [("middle", None)] * 3),
        (["--caller", "middle", "-x", "_*"],
         [("main", None), ("outer", "main"), ("middle", "outer"), *[("outer", "main"), ("middle", "outer")] * 2]),
        (["--trigger", "thrower"], [("thrower", None), ("leaf", "thrower")]),
    ],
)  # fmt: skip
def test_parts_of_a_program(
    options: list[str], expected: list[tuple[str, str | None]], tmp_path: Path, plan_cache: Path
) -> None:
    program = compile_program([TARGETS / "parts.cpp"], tmp_path / "parts", ["-O1"], "gcc")
    outcome = callscope(["record", "-o", tmp_path / "trace", *options, program], plan_cache)
    assert outcome.status == 0, outcome.errors
    assert [call[:2] for call in recorded(tmp_path / "trace", plan_cache)] == expected


def test_a_sample_has_whole_subtrees(tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "parts.cpp"], tmp_path / "parts", ["-O1"], "gcc")
    callscope(
        ["record", "-o", tmp_path / "trace", "--sample", "1/3", "-f", "middle", "-f", "leaf", program], plan_cache
    )
    calls = recorded(tmp_path / "trace", plan_cache)
    assert calls
    assert all(parent == "middle" for _, parent, _ in calls if parent)
    for at, (function, _, ended) in enumerate(calls):
        assert ended == "return"
        if function == "middle":
            assert calls[at + 1][:2] == ("leaf", "middle")


def test_a_budget_mutes_what_is_called_most_and_says_so(tmp_path: Path, plan_cache: Path) -> None:
    flags = ["-O2", "-fno-inline"]
    program = compile_program([TARGETS / "busy.cpp"], tmp_path / "busy", flags, "gcc")
    trace = tmp_path / "trace"
    outcome = callscope(["record", "-o", trace, "--max-overhead", "20%", program, "1500"], plan_cache)
    assert outcome.status == 0, outcome.errors
    facts = json.loads(callscope(["info", trace, "--format", "json"], plan_cache).output)
    muted = {entry["function"]: entry for entry in facts["muted"]}
    assert {"Counter::get() const", "Counter::set(long)"} <= set(muted)
    assert "main" not in muted
    rounds = int(outcome.output.split()[0])
    assert 0 < muted["Counter::set(long)"]["calls"] < rounds * 1000 / 2
    for command in (["report"], ["tree", "--depth", "1"], ["info"]):
        text = callscope([*command, str(trace)], plan_cache).output
        assert "Counter::set(long): " in text and "muted" in text
    first = min(entry["at_ns"] for entry in muted.values()) - 1_000_000  # from then on callers may be missing
    with TraceTables(trace) as tables:
        edges = tables.sql(
            "SELECT DISTINCT child.function, parent.function FROM calls child JOIN calls parent"
            f" ON child.parent_id = parent.call_id WHERE child.start_ns < {first}"
            " AND child.function ~ '(Counter::|step).*'"
        ).fetchall()
    assert {(child.partition("(")[0], parent.partition("(")[0]) for child, parent in edges} == {
        ("Counter::get", "step"), ("Counter::set", "step"), ("step", "turn"),
    }  # fmt: skip


def test_without_a_budget_the_busiest_function_is_named(tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "busy.cpp"], tmp_path / "busy", ["-O2", "-fno-inline"], "gcc")
    outcome = callscope(["record", "-o", tmp_path / "trace", "-f", "*step*", program, "1000"], plan_cache)
    assert "made 100% of the calls" in outcome.errors and "--max-overhead" in outcome.errors
    assert callscope(["record", "--max-overhead", "nothing", "true"], plan_cache).status == 2


@pytest.mark.parametrize("budget", ["1%", "20%"])
def test_programs_with_muted_functions_do_what_they_did(budget: str, tmp_path: Path, plan_cache: Path) -> None:
    """A thousand functions and more are muted while they run, one after the other."""
    query = (
        "WITH RECURSIVE n(i, s) AS (SELECT 1, '' UNION ALL SELECT i + 1, substr(s || hex(i * i), -40) FROM n"
        " WHERE i < 400000)"
        " SELECT count(*), max(s), min(s), sum(length(s)), avg(i % 97) FROM n;"
        " CREATE TABLE t(a, b); INSERT INTO t SELECT value, value * 7 % 1013 FROM generate_series(1, 60000);"
        " CREATE INDEX i ON t(b); SELECT b, count(*), group_concat(a % 5) FROM t GROUP BY b HAVING b % 211 = 3;"
    )
    plain = run_plain(["sqlite3", ":memory:", query])
    trace = str(tmp_path / "trace")
    command = ["record", "-m", "all", "-o", trace, "--max-overhead", budget, "sqlite3", ":memory:", query]
    outcome = callscope(command, plan_cache)
    assert (outcome.output, outcome.status) == (plain.output, plain.status)
    facts = json.loads(callscope(["info", trace, "--format", "json"], plan_cache).output)
    assert facts["muted"]

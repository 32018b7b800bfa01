"""Formats for other tools, from traces whose calls are known."""

import json
import subprocess
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callscope.cli.main import main
from callscope.exporters import json as calltrace_json
from callscope.exporters.registry import FORMATS
from callscope.exporters.steps import STEP, Steps
from callscope.exporters.walk import steps
from callscope.reports.graph import call_graph
from callscope.reports.selection import Selection
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built, sample
from tests.builders.compilers import have

TAILS = (
    Call(
        "main",
        100,
        (Call("jumper", 10, (Call("helper", 5), Call("target", 30, (Call("deep", 7),))), ended_by="tail_call"),),
    ),
)


def write(builder: TraceBuilder, directory: Path) -> Path:
    return builder.write(directory / "app.trace")


@pytest.mark.parametrize("clock", [True, False])
def test_steps_are_nested_and_in_order(clock: bool, tmp_path: Path) -> None:
    builder = sample()
    builder.clock = clock
    with open_built(builder, tmp_path / "app.trace") as database:
        found = list(steps(database, Selection()))
        assert [step.call.call_id for step in found if step.is_entry] == list(range(database.call_count))
        stack: list[int] = []
        thread, last = -1, 0
        for step in found:
            if step.call.thread != thread:
                assert not stack
                thread, last = step.call.thread, 0
            assert step.time >= last
            last = step.time
            if step.is_entry:
                stack.append(step.call.call_id)
            else:
                assert stack.pop() == step.call.call_id
        assert not stack
        only = list(steps(database, Selection(thread=1001)))
        assert len(only) == 12
        assert {step.call.thread for step in only} == {found[-1].call.thread}


WORDS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 12)


@given(st.lists(st.lists(st.tuples(*[WORDS] * 5, st.integers(0, 255)), max_size=30), max_size=3), st.booleans())
def test_steps_of_damaged_calls_are_nested_and_in_order(threads: list[list[tuple[int, ...]]], clock: bool) -> None:
    with Steps(clock) as kernel:
        for calls in threads:
            names = ("call_id", "up", "start_ns", "duration_ns", "descendants", "ended_by")
            columns = {name: [call[at] for call in calls] for at, name in enumerate(names)}
            columns |= {name: list(range(len(calls))) for name in ("function_id", "node")}
            parts = [part.copy() for part in chain(kernel.feed(columns), kernel.finish())]
            found = np.concatenate([np.empty(0, STEP), *parts])
            begun = (found["is_entry"] == 1) & (found["is_switch"] == 0)
            assert found["function"][begun].tolist() == list(range(len(calls)))
            assert np.all(np.diff(found["time"]) >= 0)
            stack: list[int] = []
            for step in found:
                if not step["is_entry"]:
                    assert stack.pop() == step["function"]
                assert step["depth"] == len(stack)
                if step["is_entry"]:
                    stack.append(step["function"])
                assert step["node"] == (stack[-1] if stack else -1)
            assert not stack


@pytest.mark.parametrize("clock", [True, False])
def test_x64trace(clock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write(TraceBuilder([Thread(7, TAILS, pid=5)], clock=clock), tmp_path)
    monkeypatch.setattr("callscope.reports.database.open_database", lambda path, progress=None: open_built(None, path))
    file = tmp_path / "app.txt"
    assert main(["export", str(trace), "--to", "x64trace", "-o", str(file)]) == 0
    rows = [line.split(" ") for line in file.read_text().splitlines()]
    assert {(row[1], row[2]) for row in rows} == {("5", "7")}
    events = [(row[3], row[4].rpartition("!")[2]) for row in rows]
    assert events == [
        ("call", "main"), ("enter", "main"),
        ("call", "jumper"), ("enter", "jumper"),
        ("call", "helper"), ("enter", "helper"), ("exit", "helper"), ("called", "helper"),
        ("jump", "jumper"),
        ("call", "target"), ("enter", "target"),
        ("call", "deep"), ("enter", "deep"), ("exit", "deep"), ("called", "deep"),
        ("exit", "target"), ("called", "target"),
        ("exit", "main"), ("called", "main"),
    ]  # fmt: skip
    times = [float(row[0]) for row in rows]
    assert times == sorted(times)
    assert ("." in rows[0][0]) == clock
    assert file.stat().st_mode & 0o777 == 0o600
    functions = json.loads((tmp_path / "app_map.json").read_text())
    assert sorted(function["name"] for function in functions) == ["deep", "helper", "jumper", "main", "target"]
    (module, *_) = json.loads((tmp_path / "app_modules.json").read_text())
    assert {"path", "base", "size", "build_id", "load_ns", "unload_ns", "pid"} == set(module)


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(sample(), tmp_path)
    monkeypatch.setattr("callscope.reports.database.open_database", lambda path, progress=None: open_built(None, path))
    (tmp_path / "app_map.json").write_text("mine")
    arguments = ["export", str(trace), "--to", "x64trace", "-o", str(tmp_path / "app.txt")]
    assert main(arguments) == 2
    assert "app_map.json exists" in capsys.readouterr().err
    assert not (tmp_path / "app.txt").exists()
    assert main([*arguments, "--force"]) == 0
    assert main([*arguments[:-1], "-"]) == 2
    assert "several files" in capsys.readouterr().err


def exported(name: str, directory: Path, builder: TraceBuilder | None = None) -> str:
    """What a text format makes of a trace."""
    with open_built(builder or sample(), directory / "app.trace") as database:
        return "\n".join(FORMATS[name].lines(database, Selection()))


@pytest.mark.parametrize("clock", [True, False])
def test_chrome(clock: bool, tmp_path: Path) -> None:
    builder = TraceBuilder([Thread(7, TAILS, pid=5, name="worker")], clock=clock)
    events = json.loads(exported("chrome", tmp_path, builder))["traceEvents"]
    named = {
        (event["name"], event["pid"], event["tid"]): event["args"]["name"] for event in events if event["ph"] == "M"
    }
    assert named["thread_name", 5, 7] == "worker"
    found = [(event["ph"], event.get("name", "").rpartition("!")[2]) for event in events if event["ph"] in "BE"]
    assert found == [
        ("B", "main"), ("B", "jumper"), ("B", "helper"), ("E", "helper"), ("E", "jumper"), ("B", "target"),
        ("B", "deep"), ("E", "deep"), ("E", "target"), ("E", "main"),
    ]  # fmt: skip
    times = [event["ts"] for event in events if event["ph"] in "BE"]
    assert times == sorted(times)
    if clock:
        assert round(times[3] - times[2], 3) == 0.005  # helper, in microseconds


def test_speedscope(tmp_path: Path) -> None:
    value = json.loads(exported("speedscope", tmp_path))
    frames = [frame["name"].rpartition("!")[2] for frame in value["shared"]["frames"]]
    assert [profile["name"] for profile in value["profiles"]] == [
        "git 1000 (process 1000)",
        "worker 1001 (process 1000)",
    ]
    for profile in value["profiles"]:
        stack: list[int] = []
        last = profile["startValue"]
        for event in profile["events"]:
            assert event["at"] >= last
            last = event["at"]
            if event["type"] == "O":
                stack.append(event["frame"])
            else:
                assert stack.pop() == event["frame"]
        assert not stack
        assert last == profile["endValue"]
        assert profile["unit"] == "nanoseconds"
    opened = [frames[event["frame"]] for event in value["profiles"][0]["events"] if event["type"] == "O"]
    assert opened[:4] == ["main", "setup", "cmd_log", "walk"]


def test_folded(tmp_path: Path) -> None:
    rows = [line.rsplit(" ", 1) for line in exported("folded", tmp_path).splitlines()]
    found = {";".join(part.rpartition("!")[2] for part in path.split(";")): int(value) for path, value in rows}
    assert found["main"] == 40_000
    assert found["main;cmd_log;walk;walk;walk"] == 200
    assert found["work"] == 60_000
    counted = exported("folded", tmp_path / "plain", TraceBuilder([Thread(7, TAILS)], clock=False))
    assert sorted(int(line.rsplit(" ", 1)[1]) for line in counted.splitlines()) == [1, 1, 1, 1, 1]


def test_callgrind(tmp_path: Path) -> None:
    text = exported("callgrind", tmp_path)
    (tmp_path / "out").write_text(text + "\n")
    own: dict[str, int] = {}
    names: dict[str, str] = {}
    function, calls = "", False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in ("fn", "cfn"):
            number, _, name = value.partition(" ")
            names.setdefault(number, name)
            function = names[number] if key == "fn" else function
        elif key == "calls":
            calls = True
        elif line[:1].isdigit():
            if not calls:
                own[function] = own.get(function, 0) + int(line.split()[1])
            calls = False
    assert own["main"] == 40_000
    assert own["walk"] == 1_700
    assert f"summary: {sum(own.values())}" in text.splitlines()
    assert "calls=2 0" in text  # compare, from cmd_log


@pytest.mark.skipif(not have("callgrind_annotate"), reason="valgrind is not installed")
def test_callgrind_annotate_takes_it(tmp_path: Path) -> None:
    (tmp_path / "out").write_text(exported("callgrind", tmp_path) + "\n")
    done = subprocess.run(
        ["callgrind_annotate", "--inclusive=yes", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert "WARNING" not in done.stderr + done.stdout
    assert "main" in done.stdout


def fields(data: bytes) -> list[tuple[int, object]]:
    """The fields of a protobuf message: (number, integer or bytes)."""
    found: list[tuple[int, object]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
        else:
            assert key & 7 == 2
            length = varint()
            found.append((key >> 3, data[at : at + length]))
            at += length
    return found


def test_perfetto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write(sample(), tmp_path)
    monkeypatch.setattr("callscope.reports.database.open_database", lambda path, progress=None: open_built(None, path))
    file = tmp_path / "out.pftrace"
    assert main(["export", str(trace), "--to", "perfetto", "-o", str(file)]) == 0
    packets = [dict(fields(value)) for number, value in fields(file.read_bytes()) if number == 1]  # type: ignore[arg-type]
    described = [dict(fields(packet[60])) for packet in packets if 60 in packet]  # type: ignore[arg-type]
    processes = [dict(fields(track[3])) for track in described if 3 in track]  # type: ignore[arg-type]
    threads = {track[1]: dict(fields(track[4])) for track in described if 4 in track}  # type: ignore[arg-type]
    assert [process[1] for process in processes] == [1000]
    assert sorted(thread[2] for thread in threads.values()) == [1000, 1001]  # type: ignore[type-var]
    interned = [dict(fields(entry)) for n, entry in fields(packets[0][12]) if n == 2]  # type: ignore[arg-type]
    names = {entry[1]: entry[2].decode().rpartition("!")[2] for entry in interned}  # type: ignore[attr-defined]
    stacks: dict[object, list[str]] = {}
    opened = []
    for packet in packets:
        assert packet[10] == 1
        if 11 in packet:
            event = dict(fields(packet[11]))  # type: ignore[arg-type]
            assert event[11] in threads
            stack = stacks.setdefault(event[11], [])
            if event[9] == 1:
                stack.append(names[event[10]])
                opened.append(stack[-1])
            else:
                stack.pop()
    assert all(not stack for stack in stacks.values())
    assert opened[:4] == ["main", "setup", "cmd_log", "walk"]
    assert opened.count("work") == 3


@pytest.mark.parametrize("pretty", [True, False])
@pytest.mark.parametrize("clock", [True, False])
def test_json_has_the_schema_of_calltrace(clock: bool, pretty: bool, tmp_path: Path) -> None:
    roots = (Call("first", 10), Call("main", 100, (Call("a", 5), Call("b", 7, (Call("c", 3),)))))
    builder = TraceBuilder([Thread(7, TAILS, pid=7), Thread(8, roots, pid=7), Thread(9, (), pid=7)], clock=clock)
    with open_built(builder, tmp_path / "app.trace") as database:
        data = json.loads("\n".join(calltrace_json.lines(database, Selection(), pretty)))
        only = json.loads("\n".join(calltrace_json.lines(database, Selection(thread=8))))
    assert [thread["thread_id"] for thread in only["threads"]] == [8]
    assert set(data["metadata"]) >= {"start_time", "end_time", "duration_ms", "process_info", "calltrace_version"}
    by_id = {thread["thread_id"]: thread for thread in data["threads"]}
    assert set(by_id) >= {7, 8}
    assert (by_id[7]["is_main_thread"], by_id[8]["is_main_thread"]) == (True, False)
    tree = by_id[7]["call_tree"]
    assert nested(tree) == ("main", (("jumper", (("helper", ()), ("target", (("deep", ()),)))),))
    assert set(tree) >= {"id", "function", "address", "call_site", "start_time", "end_time", "duration_us",
                         "call_depth", "arguments", "return_value", "children"}  # fmt: skip
    assert tree["id"] == 1
    assert tree["call_depth"] == 0
    assert tree["children"][0]["call_depth"] == 1
    assert (tree["duration_us"] is not None) == clock
    assert nested(by_id[8]["call_tree"]) == (
        "[thread]", (("first", ()), ("main", (("a", ()), ("b", (("c", ()),))))),
    )  # fmt: skip
    assert data["statistics"]["total_nodes"] == data["statistics"]["total_function_calls"] == 10
    assert "crash" not in data


def nested(node: dict[str, Any]) -> tuple[str, tuple[Any, ...]]:
    return node["function"], tuple(nested(child) for child in node["children"])


@pytest.mark.parametrize("clock", [True, False])
def test_parquet_holds_the_calls(clock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = sample()
    builder.clock = clock
    with open_built(builder, tmp_path / "app.trace") as database:
        file = tmp_path / "calls.parquet"
        file.write_bytes(b"".join(FORMATS["parquet"].chunks(database, Selection())))
        query = "SELECT * FROM {} ORDER BY call_id"
        found = database.rows(query.format(f"read_parquet('{file}')"))
        assert found == database.rows(query.format("calls")) and len(found) == database.call_count
        only = b"".join(FORMATS["parquet"].chunks(database, Selection(thread=1001)))
        file.write_bytes(only)
        assert database.rows(f"SELECT DISTINCT tid FROM read_parquet('{file}')") == [{"tid": 1001}]


def test_dot_has_the_edges_of_the_graph(tmp_path: Path) -> None:
    with open_built(sample(), tmp_path / "app.trace") as database:
        drawn = list(FORMATS["dot"].lines(database, Selection()))
        graph = call_graph(database, Selection())
    assert drawn[0].startswith("digraph") and drawn[-1] == "}"
    assert sum("->" in line for line in drawn) == sum(edge.caller is not None for edge in graph.edges) > 0


def test_speedscope_of_long_traces_is_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(exported("speedscope", tmp_path / "whole"))
    own: list[Counter[tuple[int, ...]]] = []
    for profile in whole["profiles"]:
        stack: list[int] = []
        sums: Counter[tuple[int, ...]] = Counter()
        last = profile["startValue"]
        for event in profile["events"]:
            sums[tuple(stack)] += event["at"] - last
            last = event["at"]
            if event["type"] == "O":
                stack.append(event["frame"])
            else:
                stack.pop()
        own.append(sums)
    monkeypatch.setattr("callscope.exporters.speedscope.MOST_EVENTS", 10)
    short = json.loads(exported("speedscope", tmp_path / "short"))
    assert short["shared"] == whole["shared"]
    for profile, sums in zip(short["profiles"], own, strict=True):
        assert profile["type"] == "sampled" and profile["endValue"] == sum(profile["weights"])
        found = dict(zip(map(tuple, profile["samples"]), profile["weights"], strict=True))
        assert found == {path: weight for path, weight in sums.items() if path and weight}

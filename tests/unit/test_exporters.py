"""Formats for other tools, from traces whose calls are known."""

import json
from pathlib import Path

import pytest

from callscope.cli.main import main
from callscope.exporters.walk import steps
from callscope.reports.selection import Selection
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built, sample

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

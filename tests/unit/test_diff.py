"""Differences between traces whose calls are known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from callscope.cli.main import main
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built

BEFORE = (Call("main", 100, (Call("load", 10, (Call("parse", 50),)), Call("work", 300), Call("old", 7))),)
AFTER = (
    Call("main", 100, (Call("load", 10, (Call("parse", 20),)), Call("work", 900), Call("work", 5), Call("new", 3))),
)
Diff = Callable[..., str]


@pytest.fixture
def diff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Diff:
    """Run `callscope diff` on two traces: what it prints."""
    monkeypatch.setattr("callscope.reports.database.open_database", lambda path, progress=None: open_built(None, path))

    def run(before: TraceBuilder, after: TraceBuilder, *arguments: str) -> str:
        number = len(list(tmp_path.iterdir()))
        paths = [builder.write(tmp_path / f"{number}{name}.trace") for name, builder in (("a", before), ("b", after))]
        assert main(["diff", *map(str, paths), *arguments]) == 0
        return capsys.readouterr().out

    return run


def of(*threads: tuple[Call, ...], clock: bool = True) -> TraceBuilder:
    return TraceBuilder([Thread(number, roots) for number, roots in enumerate(threads, 1)], clock=clock)


def test_functions_edges_and_parting(diff: Diff) -> None:
    found = json.loads(diff(of(BEFORE), of(AFTER), "--format", "json"))
    rows = {row["function"]: row for row in found["functions"]}
    changes = {
        name: (row["calls_after"] - row["calls_before"], row["self_after_ns"] - row["self_before_ns"])
        for name, row in rows.items()
    }
    assert changes == {
        "work": (1, 605), "parse": (0, -30), "old": (-1, -7), "new": (1, 3), "main": (0, 0), "load": (0, 0),
    }  # fmt: skip
    assert [row["function"] for row in found["functions"]][:2] == ["work", "parse"]
    assert rows["main"]["total_after_ns"] - rows["main"]["total_before_ns"] == 571
    edges = {(row["caller"].rpartition("!")[2], row["function"]): (row["calls_before"], row["calls_after"])
             for row in found["edges"]}  # fmt: skip
    assert edges == {("main", "work"): (1, 2), ("main", "old"): (1, 0), ("main", "new"): (0, 1)}
    (parting,) = found["partings"]
    assert (parting["thread"], parting["calls"]) == (0, 4)
    assert [name.rpartition("!")[2] for name in parting["path"]] == ["main"]
    assert parting["before"].endswith("!old")
    assert parting["after"].endswith("!work")


def test_depth_parts_as_well(diff: Diff) -> None:
    deep = (Call("main", 1, (Call("a", 1, (Call("b", 1),)),)),)
    flat = (Call("main", 1, (Call("a", 1), Call("b", 1))),)
    (parting,) = json.loads(diff(of(deep), of(flat), "--format", "json"))["partings"]
    assert (parting["calls"], len(parting["path"])) == (2, 1)


def test_threads_are_compared_in_order(diff: Diff) -> None:
    shorter = (Call("main", 1),)
    found = json.loads(diff(of(BEFORE, BEFORE), of(BEFORE, shorter), "--format", "json"))
    (parting,) = found["partings"]
    assert (parting["thread"], parting["calls"], parting["after"]) == (1, 1, None)
    assert parting["before"].endswith("!load")


def test_equal_traces(diff: Diff) -> None:
    text = diff(of(BEFORE), of(BEFORE))
    assert "the same calls in the same order" in text
    assert text.count("no difference") == 2


def test_text_is_signed(diff: Diff) -> None:
    text = diff(of(BEFORE), of(AFTER), "--sort", "calls")
    rows = [line.split() for line in text.splitlines()]
    assert any(row[:1] == ["+605"] and row[-1].endswith("work") for row in rows)
    assert any(row[-1:] == ["(gone)"] and row[-2].endswith("old") for row in rows)
    assert any(row[-1:] == ["(new)"] and row[-2].endswith("new") for row in rows)
    assert "parts after 4 calls" in text
    assert "more: --limit 0 shows all" in diff(of(BEFORE), of(AFTER), "--limit", "1")


def test_without_a_clock_only_calls_are_compared(diff: Diff) -> None:
    text = diff(of(BEFORE, clock=False), of(AFTER))
    assert "Total" not in text
    found = json.loads(diff(of(BEFORE, clock=False), of(AFTER), "--format", "json"))
    assert sorted(row["function"] for row in found["functions"]) == ["new", "old", "work"]

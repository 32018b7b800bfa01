"""The benchmark command works: one quick round of what every machine has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import Case, MissingError, Table, measure
from tests.builders.tracing import ROOT, tool_environment


def test_rounds_are_interleaved_and_the_median_counts() -> None:
    order: list[str] = []
    values = iter([9.0, 1.0, 5.0, 3.0])

    def first() -> float:
        order.append("a")
        return next(values)

    def missing() -> float:
        order.append("b")
        raise MissingError("not installed")

    rows = measure([Case("a", first), Case("b", missing)], rounds=3)
    assert order == ["a", "b", "a", "a", "a"]
    assert rows[0].samples == [1.0, 5.0, 3.0]
    assert rows[0].value == 3.0
    assert (rows[1].value, rows[1].note) == (None, "not installed")
    lines = Table("title", "ns", rows, base="a").lines()
    assert lines[0] == "title"
    assert lines[2].split() == ["a", "3", "1.00"]
    assert lines[3].split() == ["b", "-", "not", "installed"]


def test_command_measures_and_writes_json(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "calls", "--rounds", "1", "--output", str(output)]
    done = subprocess.run(
        command, cwd=ROOT, env=tool_environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(output.read_text())["topics"]["calls"]
    costs = {row["name"]: row["value"] for row in table["rows"]}
    assert {"untraced", "two rdtsc", "callscope, trace in memory"} <= set(costs)
    assert all(0 < cost < 10_000 for cost in costs.values() if cost is not None)
    assert "two rdtsc" in done.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["--rounds", "0"]])
def test_wrong_usage_is_refused(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=tool_environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr

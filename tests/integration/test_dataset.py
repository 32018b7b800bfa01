"""Many traces as one data set: the figures of each, added up; the same answers of another engine."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import callscope
from callscope.dataset.reports import REPORTS
from tests.builders.tracing import run_traced, tool_environment

PROGRAM = """
import os, sys
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def fail(): raise KeyError
children = [os.fork() for _ in range(1)]
fib(int(sys.argv[1]) + (children[0] == 0))
try: fail()
except KeyError: pass
if children[0]: os.wait()
"""
TRACES = 4


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four traces of two processes each, and the data set of them."""
    directory = tmp_path_factory.mktemp("dataset")
    (directory / "work.py").write_text(PROGRAM)
    for number in range(TRACES):
        command: list[str | Path] = [sys.executable, directory / "work.py", str(number + 3)]
        outcome = run_traced(command, directory / f"{number}.trace", directory / "cache")
        assert outcome.status == 0, outcome.errors
    done = call(directory, "collect", ".", "-o", "all")
    assert done.returncode == 0 and "4 traces" in done.stderr, done.stderr
    return directory


def call(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "callscope", *arguments]
    environment = tool_environment(directory / "cache")
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def ask(directory: Path, report: str, *options: str) -> list[dict[str, Any]]:
    done = call(directory, "query", "all", report, "--format", "json", "--limit", "0", *options)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def sums(directory: Path, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query over each trace, one after the other."""
    rows = []
    for number in range(TRACES):
        with callscope.open(directory / f"{number}.trace") as tables:
            rows += tables.sql(query).fetchall()
    return rows


def test_functions_have_the_sum_of_all_traces(directory: Path) -> None:
    wanted: dict[tuple[str, str], list[int]] = {}
    query = "SELECT function, module, count(*), sum(self_ns)::BIGINT, max(duration_ns) FROM calls GROUP BY ALL"
    for function, module, calls, self_ns, longest in sums(directory, query):
        entry = wanted.setdefault((function, module), [0, 0, 0])
        wanted[function, module] = [entry[0] + calls, entry[1] + self_ns, max(entry[2], longest)]
    rows = ask(directory, "functions")
    assert {(r["function"], r["module"]): [r["calls"], r["self_ns"], r["max_ns"]] for r in rows} == wanted
    fib = next(row for row in rows if row["function"] == "fib")
    assert fib["calls"] == sum(calls_of_fib(n) + calls_of_fib(n + 1) for n in range(3, 3 + TRACES))
    assert fib["min_ns"] <= fib["p99_ns"] <= fib["max_ns"]
    outermost = sums(
        directory,
        "SELECT c.duration_ns FROM calls c LEFT JOIN calls p ON p.call_id = c.parent_id "
        "WHERE c.function = 'fib' AND coalesce(p.function, '') <> 'fib'",
    )
    assert fib["total_ns"] == sum(duration for (duration,) in outermost)


def calls_of_fib(n: int) -> int:
    return 1 if n < 2 else 1 + calls_of_fib(n - 1) + calls_of_fib(n - 2)


def test_processes_and_edges(directory: Path) -> None:
    processes = ask(directory, "processes")
    assert len(processes) == 2 * TRACES
    assert len({row["trace"] for row in processes}) == TRACES
    assert all(row["first_utc_ns"] < row["last_utc_ns"] and row["calls"] > 0 for row in processes)
    edges = {(row["caller"], row["function"]): row["calls"] for row in ask(directory, "edges")}
    assert edges["<module>", "fib"] == edges["<module>", "fail"] == TRACES
    assert edges[None, "fib"] == edges[None, "fail"] == TRACES, (
        "in the children, which began behind the call of <module>"
    )
    longest = ask(directory, "longest", "--limit", "3")
    assert len(longest) == 3 and longest[0]["duration_ns"] >= longest[1]["duration_ns"]


def test_collecting_again_replaces(directory: Path, tmp_path: Path) -> None:
    before = ask(directory, "functions")
    assert call(directory, "collect", "1.trace", "2.trace", "-o", "all").returncode == 0
    assert ask(directory, "functions") == before
    assert len(json.loads((directory / "all/dataset.json").read_text())["traces"]) == TRACES
    assert all(path.stat().st_mode & 0o077 == 0 for path in (directory / "all").rglob("*"))


def test_bad_data_sets(directory: Path, tmp_path: Path) -> None:
    for arguments, words in [
        (["query", "0.trace"], "0.trace is not a data set: make one with callscope collect"),
        (["query", "missing"], "missing is not a data set"),
        (["collect", "missing", "-o", "x"], "missing is neither a trace nor a directory of traces"),
        (["collect", str(tmp_path), "-o", "x"], "there is no trace in"),
        (["query", "all", "functions", "--host", "x' OR '1'='1\\"], ""),
    ]:
        done = call(directory, *arguments)
        assert words in done.stderr and "Traceback" not in done.stderr
        assert done.returncode == (0 if not words else 2)
    shutil.copytree(directory / "all", tmp_path / "cut")
    for path in (tmp_path / "cut").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    done = call(tmp_path, "query", "cut")
    assert done.returncode == 1 and "cannot be asked" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None, reason="Spark is not installed: pip install pyspark")
@pytest.mark.parametrize("report", REPORTS)
def test_spark_answers_the_same(directory: Path, report: str) -> None:
    assert ask(directory, report, "--engine", "spark") == ask(directory, report)

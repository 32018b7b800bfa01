"""Python calls beside native ones: the same as sys.setprofile tells, in every version, and nothing the program sees."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import callscope
from tests.builders.setprofile import CALLS, QUIET, REFERENCE, pythons, recorded, reference, surroundings
from tests.builders.tracing import Outcome, run_plain, run_traced, tool_environment

VERSIONS = sorted(pythons(), key=lambda version: int(version.split(".")[1]))
EACH = pytest.mark.parametrize("version", VERSIONS)
BOTH_WAYS = pytest.mark.parametrize("version", dict.fromkeys([VERSIONS[0], VERSIONS[-1]]))
"""the profile function's and sys.monitoring's"""
MODULES = ("test_bisect", "test_heapq", "test_textwrap", "test_fractions", "test_json.test_decode", "test_operator",
           "test_contextlib", "test_copy", "test_dataclasses", "test_string", "test_reprlib", "test_abc")  # fmt: skip
OWN_TESTS = ("test_generators", "test_coroutines", "test_asyncio.test_tasks", "test_threading", "test_exceptions",
             "test_json")  # fmt: skip


class Run:
    """Records python programs for one test."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory, self.cache = directory, cache

    def __call__(self, version: str, *arguments: str | Path, **recording: object) -> Outcome:
        """Record an interpreter with these arguments; `recording` are fields of RecordOptions."""
        command = [pythons()[version], *arguments]
        trace = self.directory / "python.trace"
        return run_traced(command, trace, self.cache, 600, recording=recording, env=surroundings(self.directory))


@pytest.fixture
def run(tmp_path: Path, plan_cache: Path) -> Run:
    return Run(tmp_path, plan_cache)


def traced(outcome: Outcome, status: int = 0) -> Path:
    assert outcome.status == status, outcome.errors
    assert outcome.trace is not None
    return outcome.trace


def rows(trace: Path, query: str) -> list[tuple[object, ...]]:
    with callscope.open(trace) as tables:
        return tables.sql(query).fetchall()


def has_tests(version: str) -> bool:
    return run_plain([pythons()[version], "-c", "import test.test_bisect"]).status == 0


@EACH
def test_calls_equal_what_setprofile_tells(version: str, run: Run, tmp_path: Path) -> None:
    trace = traced(run(version, REFERENCE, CALLS, "main", "-"))
    wanted = reference(pythons()[version], CALLS, "main", tmp_path / "log")
    assert len(wanted) > 1000
    assert recorded(trace, "main") == wanted
    assert rows(trace, "SELECT DISTINCT ended_by FROM calls WHERE ended_by NOT IN ('return', 'unwound')") == []
    unwound = rows(trace, "SELECT function FROM calls WHERE ended_by = 'unwound' AND function LIKE '%fail%'")
    assert len(unwound) == 8, "five deep, two deep, and their bottoms"


@EACH
def test_threads_have_trees_of_their_own(version: str, run: Run) -> None:
    trace = traced(run(version, CALLS))
    found = rows(
        trace,
        "SELECT c.tid, count(*) FILTER (f.function = 'fibonacci') FROM calls c JOIN calls f ON f.tid = c.tid "
        "WHERE c.function = 'in_thread' GROUP BY c.tid ORDER BY 2",
    )
    assert [count for _, count in found] == [5, 9]
    assert rows(trace, "SELECT count(*) FROM calls WHERE function = 'in_thread' AND ended_by = 'return'") == [(2,)]


@pytest.mark.long
@pytest.mark.parametrize("module", MODULES)
@EACH
def test_calls_of_pythons_own_tests(version: str, module: str, run: Run, tmp_path: Path) -> None:
    if not has_tests(version):
        pytest.skip("this interpreter is installed without its tests")
    if module in ("test_copy", "test_contextlib", "test_heapq") and version in ("3.9", "3.10"):
        pytest.skip(
            "sys.setprofile itself keeps alive what locals held, up to the next event, and a test there notices"
        )
    trace = traced(run(version, REFERENCE, f"test.{module}", "tests", "-"))
    assert recorded(trace, "tests") == reference(pythons()[version], f"test.{module}", "tests", tmp_path / "log")


@pytest.mark.long
@pytest.mark.parametrize("module", OWN_TESTS)
@EACH
def test_pythons_own_tests_pass(version: str, module: str, run: Run) -> None:
    command = ["-m", "test", "-q", module]
    if not has_tests(version):
        pytest.skip("this interpreter is installed without its tests")
    if run_plain([pythons()[version], *command], 300).status != 0:
        pytest.skip("it does not pass untraced")
    assert run(version, *command).status == 0


MIXED = """
import sqlite3

def upper(text): return text.upper()
def work(connection):
    return connection.execute("SELECT upper_of(x) FROM t ORDER BY x").fetchall()
connection = sqlite3.connect(":memory:")
connection.create_function("upper_of", 1, upper)
connection.execute("CREATE TABLE t (x)")
connection.executemany("INSERT INTO t VALUES (?)", [("a",), ("b",)])
print(work(connection))
"""


@EACH
def test_native_functions_stand_under_their_python_callers(version: str, run: Run, tmp_path: Path) -> None:
    program = tmp_path / "mixed.py"
    program.write_text(MIXED)
    outcome = run(version, program, modules=("libsqlite3*", "_sqlite3*"))
    assert not outcome.errors
    assert outcome.output.strip() == "[('A',), ('B',)]"
    with callscope.open(traced(outcome)) as tables:
        calls = {
            row[0]: row[1:] for row in tables.sql("SELECT call_id, parent_id, module, function FROM calls").fetchall()
        }
    paths = []
    for call, (_, _, function) in calls.items():
        if function == "upper":
            path = []
            at: int | None = call
            while at is not None:
                parent, module, name = calls[at]
                path.append((module, name))
                at = parent
            paths.append(path)
    assert len(paths) == 2
    for path in paths:
        modules = [module for module, _ in path]
        assert modules[0] == "mixed.py" and path[-1] == ("mixed.py", "<module>")
        work = path.index(("mixed.py", "work"))
        between = modules[1:work]
        assert any(module.startswith("_sqlite3") for module in between), path
        assert any(module.startswith("libsqlite3") for module in between), path
        assert path[work - 1] == ("sqlite3", "Connection.execute") or "fetchall" in path[work - 1][1]


SEEN = """
import os, sys, threading
print(__name__, __file__, sys.argv, sys.path, sorted(sys.modules), sys.getprofile(), sys.gettrace(), sys.flags)
print(threading.active_count(), sys.getrecursionlimit(), os.getcwd(), sorted(sys.meta_path, key=str) == sys.meta_path)
print(sorted(name for name in os.environ if "CALLSCOPE" not in name and name != "LD_PRELOAD"))
def tracer(frame, event, argument): return tracer
sys.settrace(tracer)
assert sys.gettrace() is tracer
tracer.__call__(None, "", None)
sys.settrace(None)
"""


@EACH
def test_the_program_sees_nothing(version: str, run: Run, tmp_path: Path) -> None:
    program = tmp_path / "seen.py"
    program.write_text(SEEN)
    command: list[str | Path] = ["env", "-u", "PYTHONPATH", pythons()[version], program, "a", "b"]
    before = run_plain(command, env=os.environ | QUIET)
    outcome = run_traced(command, tmp_path / "seen.trace", run.cache, env=QUIET)
    assert rows(traced(outcome), "SELECT count(*) FROM calls WHERE function = 'tracer'") != [(0,)]
    assert before.status == 0
    assert outcome.output == before.output


@BOTH_WAYS
@pytest.mark.parametrize(
    ("code", "status"),
    [("import sys; sys.exit(3)", 3), ("raise KeyError", 1), ("import os; os._exit(5)", 5),
     ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143)],
)  # fmt: skip
def test_status_passes_through(version: str, code: str, status: int, run: Run) -> None:
    trace = traced(run(version, "-X", "dev", "-c", f"def f(): pass\nf()\n{code}"), status)
    assert rows(trace, "SELECT count(*) FROM calls WHERE function = 'f'") == [(1,)]


@BOTH_WAYS
@pytest.mark.parametrize("options", [{"clock": "none"}, {"keep_last": 4 << 20}])
def test_other_ways_to_keep_events(version: str, options: dict[str, object], run: Run, tmp_path: Path) -> None:
    program = tmp_path / "many.py"
    program.write_text("def f(): abs(1)\ndef g():\n    for _ in range(100_000): f()\ng()\n")
    trace = traced(run(version, program, **options))
    query = "SELECT count(*), coalesce(bool_or(c.duration_ns <> 0), false) FROM calls c " \
            "JOIN calls p ON c.parent_id = p.call_id " \
            "WHERE c.function = 'abs' AND p.function = 'f' AND c.ended_by = 'return'"  # fmt: skip
    ((found, is_timed),) = rows(trace, query)
    assert isinstance(found, int)
    if "clock" in options:
        assert (found, is_timed) == (100_000, False)
    else:
        assert 20_000 < found < 80_000 and is_timed, "4 MiB of 100,000 x 64 bytes"


CHILDREN = """
import multiprocessing, os, subprocess, sys
def inside(n): return n + 1
if __name__ == "__main__":
    subprocess.run([sys.executable, "-c", "def inside(n): pass\\ninside(1)"], check=True)
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=inside, args=(1,))
        process.start(); process.join()
    if os.fork() == 0:
        inside(2)
        os._exit(0)
    os.wait()
"""


@EACH
def test_children_are_followed(version: str, run: Run, tmp_path: Path) -> None:
    program = tmp_path / "children.py"
    program.write_text(CHILDREN)
    trace = traced(run(version, program))
    assert rows(trace, "SELECT count(DISTINCT pid), count(*) FROM calls WHERE function = 'inside'") == [(4, 4)]
    alone = traced(run(version, program, follow=False))
    assert rows(alone, "SELECT count(*) FROM calls WHERE function = 'inside'") == [(0,)]


def test_what_is_recorded_can_be_chosen(run: Run, tmp_path: Path) -> None:
    program = tmp_path / "mixed.py"
    program.write_text("import zlib\nfor _ in range(3): zlib.crc32(b'x')\n")
    sources = "SELECT DISTINCT CASE WHEN path LIKE '%.py' THEN 'python' WHEN address = 0 THEN path ELSE module END " \
              "FROM functions WHERE function_id IN (SELECT function_id FROM calls)"  # fmt: skip
    version = VERSIONS[0]
    only = {str(name) for (name,) in rows(traced(run(version, program, python="only", modules=("libz*",))), sources)}
    assert "python" in only and not any(name.startswith("libz") for name in only)
    none = {str(name) for (name,) in rows(traced(run(version, program, python="off", modules=("libz*",))), sources)}
    assert "python" not in none and any(name.startswith("libz") for name in none)
    frames = rows(
        traced(
            run(version, program, modules=("main", "all"), functions=("*python*!PyObject_*",), interpreter_frames=True)
        ),
        "SELECT count(*) FROM calls WHERE function LIKE 'PyObject%'",
    )
    assert frames[0][0] != 0


GREENLETS = """
from greenlet import getcurrent, greenlet
def leaf(n): return n
def inner(): main.switch(); leaf(1)
def worker():
    for i in range(3):
        leaf(2)
        inner()
def drive():
    both = greenlet(worker), greenlet(worker)
    while not both[1].dead:
        for one in both:
            one.switch()
            leaf(3)
main = getcurrent()
drive()
"""


def printed_callers(text: str) -> Counter[tuple[str, str]]:
    """(caller, called) as the tree's indentation tells."""
    found: Counter[tuple[str, str]] = Counter()
    callers: dict[int, str] = {0: ""}
    for line in text.splitlines():
        if match := re.match(r"^[ 0-9.a-z]*?  [0-9]+  ( *)(?:/\* (\S+) goes on \*/|([^ ]+?)\(\)( {|;))", line):
            indent, back, name, _ = match.groups()
            if back:
                callers[len(indent)] = back.rsplit("!")[-1]
                continue
            called = name.rsplit("!")[-1]
            found[callers[len(indent)], called] += 1
            callers[len(indent) + 2] = called
    return found


@pytest.fixture
def green(tmp_path: Path, plan_cache: Path) -> Path:
    """A trace of greenlets that take turns."""
    pytest.importorskip("greenlet")
    (tmp_path / "green.py").write_text(GREENLETS)
    return traced(run_traced([sys.executable, tmp_path / "green.py"], tmp_path / "green.trace", plan_cache))


def tree_of(trace: Path, cache: Path, *options: str) -> str:
    command: list[str | Path] = [sys.executable, "-m", "callscope", "tree", trace, *options]
    return run_plain(command, env=tool_environment(cache)).output


def test_greenlets_stand_under_their_callers_in_the_tree(green: Path, plan_cache: Path) -> None:
    own = ("leaf", "inner", "worker", "drive")
    wanted = rows(
        green,
        "SELECT coalesce(p.function, ''), c.function, count(*) FROM calls c LEFT JOIN calls p "
        f"ON p.call_id = c.parent_id WHERE c.function IN {own} GROUP BY ALL",
    )
    text = tree_of(green, plan_cache, "-f", "green.py!<module>")
    found = {(caller, called): count for (caller, called), count in printed_callers(text).items() if called in own}
    assert found == {(caller, called): count for caller, called, count in wanted}
    assert text.count("{") == text.count("}")


def test_greenlets_in_a_tree_of_few_levels(green: Path, plan_cache: Path) -> None:
    shown = printed_callers(tree_of(green, plan_cache, "-f", "drive", "--depth", "3"))
    below = [("", "drive", 1), ("drive", "greenlet.switch", 8), ("drive", "leaf", 8), ("greenlet.switch", "worker", 2)]
    assert {(caller, called): shown[caller, called] for caller, called, _ in below} == {
        (caller, called): count for caller, called, count in below
    }
    assert not any(caller == "worker" for caller, _ in shown)
    levels = [json.loads(line)["depth"] for line in tree_of(green, plan_cache, "--format", "json", "--depth", "4")
              .replace("},", "}").splitlines() if line.startswith("{")]  # fmt: skip
    assert levels and [(len(levels),)] == rows(green, "SELECT count(*) FROM calls WHERE depth < 4")


def test_greenlets_have_stacks_of_their_own(green: Path) -> None:
    found = rows(
        green,
        "SELECT p.function, c.function, count(*), count(DISTINCT p.call_id) FROM calls c JOIN calls p "
        "ON p.call_id = c.parent_id WHERE c.function IN ('leaf', 'inner', 'worker') GROUP BY ALL ORDER BY ALL",
    )
    assert found == [
        ("drive", "leaf", 8, 1),
        ("greenlet.switch", "worker", 2, 2),
        ("inner", "leaf", 6, 6),
        ("worker", "inner", 6, 2),
        ("worker", "leaf", 6, 2),
    ]
    own = "SELECT count(*) FROM calls WHERE function IN ('leaf', 'inner', 'worker', 'drive') AND ended_by <> 'return'"
    assert rows(green, own) == [(0,)]


CHOICES = [
    ({"functions": ("app.py!*",)}, {"<module>", "Reader", "Reader.read", "hook"}),
    ({"functions": ("read", "json!loads")}, {"Reader.read", "loads"}),
    ({"functions": ("*/app.py!h*", "builtins!len")}, {"hook", "len"}),
    ({"functions": ("app.py!*",), "excludes": ("hook",)}, {"<module>", "Reader", "Reader.read"}),
]


@BOTH_WAYS
@pytest.mark.parametrize(("options", "wanted"), CHOICES)
def test_functions_are_chosen(
    version: str, options: dict[str, tuple[str, ...]], wanted: set[str], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(
        "import json\nclass Reader:\n    def read(self, text): return json.loads(text, object_hook=hook)\n"
        "def hook(value): return len(value)\nfor _ in range(3): Reader().read('{}')\n"
    )
    trace = traced(run(version, tmp_path / "app.py", **options))
    names = {str(name).rsplit(".", 1)[-1] for name in wanted}
    found = {str(name).rsplit(".", 1)[-1] for (name,) in rows(trace, "SELECT DISTINCT function FROM calls")}
    assert found == names
    calls = "SELECT count(*) FROM calls WHERE function IN ('read', 'Reader.read', 'hook')"
    assert rows(trace, calls) == [(3 * len(wanted & {"Reader.read", "hook"}),)]


def test_rules_that_match_nothing_are_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f(): pass\nf()\n")
    command = [sys.executable, "-m", "callscope", "record", "-f", "f", "-f", "absent", "-o", "t.trace", "app.py"]
    done = run_plain(command, cwd=tmp_path, env=tool_environment(run.cache))
    assert "--function absent matched nothing" in done.errors and "--function f " not in done.errors

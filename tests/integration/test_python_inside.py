"""A Python program that records parts of itself: callscope.trace, the pytest plugin, the magic of IPython."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import callscope
from callscope.pytest_plugin import LONGEST_NAME, trace_name
from tests.builders.tracing import run_traced, tool_environment

PROGRAM = """
import json, os, sys, threading, time
import callscope

def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def outside(): return fib(3)

recording = callscope.trace("part.trace")
stop, turn = threading.Event(), threading.Event()

def background():
    while not stop.is_set():
        if recording.path and not turn.is_set():
            fib(4)
            turn.set()
        time.sleep(0.0001)

thread = threading.Thread(target=background)
thread.start()
for round in range(20):
    outside()
    with recording:
        turn.clear()
        fib(10)
        with callscope.trace("inner.trace") as inner:
            pass
        assert inner.path is None
        turn.wait()
        if round == 3 and os.fork() == 0:
            fib(2)
            os._exit(0)
        if round == 3:
            os.wait()
stop.set()
thread.join()

@callscope.trace("decorated.trace")
def decorated(n): return fib(n)
assert decorated(5) == 5

try:
    with callscope.trace("raising.trace"):
        json.loads("{")
except ValueError:
    pass
assert sys.getprofile() is None
print("done")
"""


def run(directory: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=tool_environment(directory / "cache"),
        capture_output=True,
        text=True,
        timeout=120,
    )


def calls(trace: Path, query: str) -> list[tuple[object, ...]]:
    with callscope.open(trace) as tables:
        return tables.sql(query).fetchall()


def test_parts_of_a_program_are_recorded_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run(tmp_path, sys.executable, "program.py")
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
    for number in range(20):
        name = "part.trace" if number == 0 else f"part-{number + 1}.trace"
        found = calls(
            tmp_path / name, "SELECT tid, count(*) FROM calls WHERE function = 'fib' GROUP BY tid ORDER BY 2 DESC"
        )
        assert [count for _, count in found[:2]] == [177, 9], "fib(10) here, fib(4) in the other thread"
        assert len(found) == (3 if number == 3 else 2), "the child's fib(2) in one of them"
        assert calls(tmp_path / name, "SELECT count(*) FROM calls WHERE function IN ('outside', '__exit__')") == [(0,)]
        assert calls(tmp_path / name, "SELECT DISTINCT ended_by FROM calls WHERE function = 'fib'") == [("return",)]
    assert calls(tmp_path / "decorated.trace", "SELECT count(*) FROM calls WHERE function = 'fib'") == [(15,)]
    assert calls(tmp_path / "raising.trace", "SELECT ended_by FROM calls WHERE function = 'loads'") == [("unwound",)]
    session = json.loads((tmp_path / "part.trace" / "session.json").read_text())
    assert session["status"] == "complete"


def test_within_a_recording_nothing_is_done(tmp_path: Path, plan_cache: Path) -> None:
    code = "import callscope\ndef f(): pass\nwith callscope.trace('part.trace') as part: f()\nprint(part.path)"
    outcome = run_traced([sys.executable, "-c", code], tmp_path / "whole.trace", plan_cache, cwd=tmp_path)
    assert outcome.output == "None\n", outcome.errors
    assert not (tmp_path / "part.trace").exists()
    assert outcome.trace is not None
    assert calls(outcome.trace, "SELECT count(*) FROM calls WHERE function = 'f'") == [(1,)]


def test_pytest_writes_a_trace_of_each_test(tmp_path: Path) -> None:
    (tmp_path / "test_sums.py").write_text(
        "import pytest\n"
        "def add(a, b): return a + b\n"
        "@pytest.fixture\ndef one(): return add(0, 1)\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_add(one, n): assert add(one, n) == n + 1\n"
        "def test_fails(): assert add(1, 1) == 3\n"
    )
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    plain = run(tmp_path, sys.executable, *arguments)
    assert not (tmp_path / "callscope-traces").exists(), plain.stdout
    done = run(tmp_path, sys.executable, *arguments, "--callscope")
    assert done.returncode == plain.returncode == 1, done.stdout + done.stderr
    assert "callscope: 3 traces in callscope-traces" in done.stdout
    names = sorted(path.name for path in (tmp_path / "callscope-traces").iterdir())
    assert names == ["test_sums.py-test_add-1.trace", "test_sums.py-test_add-2.trace", "test_sums.py-test_fails.trace"]
    for name in names:
        assert calls(tmp_path / "callscope-traces" / name, "SELECT count(*) FROM calls WHERE function = 'add'") == [
            (1,)
        ]


@pytest.mark.parametrize("node", ["a/b.py::test[../../x]", "t.py::t[" + "y" * 300 + "]", "t.py::t[ü/\\\0]"])
def test_names_of_traces_are_names(node: str) -> None:
    name = trace_name(node)
    assert "/" not in name and not name.startswith(".") and "\0" not in name
    assert len(name) <= LONGEST_NAME + len("-123456789012.trace")
    assert name != trace_name(node + "z")


def test_a_cell_is_recorded(tmp_path: Path) -> None:
    code = (
        "from IPython.core.interactiveshell import InteractiveShell as S\n"
        "s = S.instance()\n"
        "s.run_line_magic('load_ext', 'callscope')\n"
        "s.run_cell('def fib(n): return n if n < 2 else fib(n-1) + fib(n-2)')\n"
        "s.run_cell('%%callscope -o cell.trace -n 5\\nx = fib(6)\\nx + 100')\n"
        "s.run_cell('print(x)')\n"
        "s.run_cell('%%callscope --nonsense\\nx = 1')\n"
    )
    done = run(tmp_path, sys.executable, "-c", code)
    assert "<cell>!<module>" not in done.stdout.splitlines()[0] and "fib" in done.stdout
    assert "108" in done.stdout and "\n8\n" in done.stdout, done.stdout + done.stderr
    assert "callscope: error: %%callscope: unrecognized arguments: --nonsense" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert calls(tmp_path / "cell.trace", "SELECT count(*) FROM calls WHERE function = 'fib'") == [(25,)]


def test_a_source_file_is_run_by_python(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import sys\ndef handle(): print(sys.argv)\nhandle()\n")
    done = run(tmp_path, sys.executable, "-m", "callscope", "record", "app.py", "-x")
    assert done.stdout == "['app.py', '-x']\n", done.stderr
    assert calls(tmp_path / "app.py.trace", "SELECT count(*) FROM calls WHERE function = 'handle'") == [(1,)]
    (tmp_path / "run.py").write_text(f"#!{sys.executable}\nimport sys\ndef handle(): print(sys.argv)\nhandle()\n")
    (tmp_path / "run.py").chmod(0o755)
    done = run(tmp_path, sys.executable, "-m", "callscope", "record", "run.py")
    assert done.stdout == "['./run.py']\n", done.stderr

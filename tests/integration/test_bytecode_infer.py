"""Instructions inferred from branches are those that CPython tells of one by one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from callscope.bytecode.codes import read_codes
from callscope.bytecode.decode import Decoder
from callscope.bytecode.executed import Executed
from callscope.bytecode.interpreters import Version
from callscope.bytecode.run import EVENTS, INFERRED_VERSIONS, Choice, Program, run
from callscope.bytecode.tokens import INFER
from tests.builders.pythons import bytecode, calls_of, interpreter_of, name_of, program

each_inferred = pytest.mark.parametrize("version", INFERRED_VERSIONS, ids=name_of)
MODES = ("--infer", "--no-infer")
# Others differ from run to run (threads, what gc finds), in how deep they recurse until RecursionError, or set a trace
# function, where CPython does not tell of each instruction.
MODULES = (
    "asyncgen", "contextlib", "contextlib_async", "coroutines", "dataclasses", "except_star", "exception_group",
    "exceptions", "fractions", "generators", "grammar", "iter", "json", "listcomps", "named_expressions", "opcodes",
    "raise", "textwrap", "unpack_ex", "with", "yield_from",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_order_of_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")


def both(directory: Path, version: Version, *arguments: object, status: int = 0) -> list[str]:
    """The lines that both modes write."""
    found = []
    for mode in MODES:
        options = ("--python", interpreter_of(version).path, mode)
        done = bytecode(directory, *options, "--force", *arguments[:-1], arguments[-1], f"{mode}.txt")
        assert done.returncode == status, done.stderr[-1000:]
        found.append((directory / f"{mode}.txt").read_text().splitlines())
    assert first_difference(*found) == ""
    return found[0]


def first_difference(one: list[str], other: list[str]) -> str:
    for number, pair in enumerate(zip(one, other, strict=False)):
        if pair[0] != pair[1]:
            return f"line {number}: {one[max(number - 3, 0) : number + 3]}, but {other[number : number + 3]}"
    return "" if len(one) == len(other) else f"{len(one)} lines, but {len(other)}"


@each_inferred
@pytest.mark.parametrize("name", ["factorial", "basic", "modern", "match", "groups", "flow"])
def test_inferred_is_told(name: str, version: Version, tmp_path: Path) -> None:
    assert len(both(tmp_path, version, program(tmp_path, name).name)) > 40


@each_inferred
def test_operands_of_two_bytes(version: Version, tmp_path: Path) -> None:
    source = program(tmp_path, "tables")
    source.write_text(source.read_text().replace("70000", "300"))
    assert any("EXTENDED_ARG" in line for line in both(tmp_path, version, source.name))


@pytest.mark.long
@each_inferred
def test_operands_of_three_bytes(version: Version, tmp_path: Path) -> None:
    assert len(both(tmp_path, version, program(tmp_path, "tables").name)) > 350_000


@pytest.mark.long
@each_inferred
@pytest.mark.parametrize("module", MODULES)
def test_modules_of_cpythons_own_tests(module: str, version: Version, tmp_path: Path) -> None:
    test = f"test_{module}"
    files = [option for glob in (f"*/test/{test}.py", f"*/test/{test}/*") for option in ("--file", glob)]
    found = []
    for mode in MODES:
        arguments = (
            "--python",
            interpreter_of(version).path,
            mode,
            *files,
            "-m",
            "unittest",
            f"{mode}.txt",
            f"test.{test}",
        )
        done = bytecode(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr[-1000:]
        found.append((tmp_path / f"{mode}.txt").read_text().splitlines())
    assert len(found[0]) > 30
    assert first_difference(*found) == ""


@each_inferred
@pytest.mark.parametrize(
    "options",
    [
        ("-t", "only", "-n", "special"), ("-t", "only", "-n", "__*__", "-n", "consume"), ("--lines", "150-200"),
        ("--from", "endless", "--to", "handler"), ("--limit", "1234"), ("-r", "--format", "json"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_filters(options: tuple[str, ...], version: Version, tmp_path: Path) -> None:
    assert len(both(tmp_path, version, *options, program(tmp_path, "flow").name)) > 20


@each_inferred
def test_as_a_trace(version: Version, tmp_path: Path) -> None:
    source = program(tmp_path, "flow").name
    calls = []
    for mode in MODES:
        done = bytecode(
            tmp_path, "--python", interpreter_of(version).path, mode, "--format", "trace", source, f"{mode}.trace"
        )
        assert done.returncode == 0, done.stderr
        calls.append(calls_of(tmp_path / f"{mode}.trace"))
    assert len(calls[0]) > 10_000
    assert calls[0] == calls[1]


ENDINGS = {
    "import os\nx = 1\nos._exit(7)": 7,
    "import os, signal\nx = 1\nos.kill(os.getpid(), signal.SIGKILL)": 128 + signal.SIGKILL,
    "import os\nfor one in (1, 2): x = one\nos.abort()": 128 + signal.SIGABRT,
    "def f():\n    raise ValueError\nx = 1\nf()": 1,
    "import sys\nx = 1\nsys.exit(3)": 3,
}


@each_inferred
def test_ends_of_the_process(version: Version, tmp_path: Path) -> None:
    """A call that ends the process is shown, though nothing is told behind it."""
    for source, status in ENDINGS.items():
        (tmp_path / "end.py").write_text(source + "\n")
        assert " CALL " in both(tmp_path, version, "end.py", status=status)[-1] or status == 1


THREADS = """\
import threading
def work(start, end):
    start.wait()
    total = 0
    for i in range(300):
        total += i
    end.set()
    return total
starts = [threading.Event() for _ in range(3)]
ends = [threading.Event() for _ in range(3)]
threads = [threading.Thread(target=work, args=pair) for pair in zip(starts, ends)]
for thread in threads: thread.start()
for start, end in zip(starts, ends):
    start.set()
    end.wait()
for thread in threads: thread.join()
"""


@each_inferred
def test_threads(version: Version, tmp_path: Path) -> None:
    """Each thread's own instructions; and what a thread waits for comes before it goes on."""
    (tmp_path / "threads.py").write_text(THREADS)
    found = []
    for mode in MODES:
        done = bytecode(
            tmp_path, "--python", interpreter_of(version).path, mode, "--format", "json", "threads.py", f"{mode}.json"
        )
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / f"{mode}.json").read_text().splitlines()]
        found.append({thread: [row for row in rows if row["thread"] == thread] for thread in range(1, 5)})
        in_order(row for row in rows if row["line"] in (5, 6, 14, 15) and row["code"] != "<module>")
        waits = [row["thread"] for row in rows if row["line"] == 15 and row["name"] == "CALL"]
        assert waits == [1, 1, 1]
    assert found[0] == found[1]
    assert all(len(rows) > (0 if thread == 1 else 300) for thread, rows in found[0].items())


def in_order(rows: Iterable[dict[str, int]]) -> None:
    """The threads' loops follow one another, each in one piece."""
    threads = [row["thread"] for row in rows]
    assert sum(one != two for one, two in pairwise(threads)) == 2


@each_inferred
def test_it_is_the_default_and_small(version: Version, tmp_path: Path) -> None:
    interpreter = interpreter_of(version)
    for name in ("basic", "flow"):
        source = program(tmp_path, name)
        recording = tmp_path / f"{name}.recording"
        recording.mkdir()
        assert run(Program(str(source)), interpreter, 0, Choice(), recording) == 0
        stored = (recording / EVENTS).read_bytes().rstrip(b"\0")
        assert stored[0] == INFER
        executed = Decoder(read_codes(recording, interpreter)).read(recording)
        assert len(stored) < 2 * sum(isinstance(one, Executed) for one in executed)


def test_where_it_cannot_be(tmp_path: Path) -> None:
    program(tmp_path, "factorial")
    for options in (("--python", "3.13", "--values"), ("--python", "3.11")):
        interpreter_of((3, int(options[1][2:])))
        done = bytecode(tmp_path, "--infer", *options, "factorial.py", "trace.txt")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "--infer" in done.stderr and "leave" in done.stderr
        assert not (tmp_path / "trace.txt").exists()

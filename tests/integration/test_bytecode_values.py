"""`callscope bytecode --values`, threads, forked children, and programs with a trace function of their own."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from callscope.bytecode.interpreters import Version
from tests.builders.pythons import bytecode, each_version, interpreter_of, name_of, program

FALLS_THROUGH = ("LOAD_FAST", "STORE_FAST", "STORE_NAME", "LOAD_NAME", "COMPARE_OP", "RETURN_VALUE", "POP_TOP")


def traced(directory: Path, version: Version, name: str, *options: str) -> tuple[str, list[dict[str, Any]]]:
    """Standard output, and the rows."""
    output = f"{name}.json"
    done = bytecode(
        directory,
        "--python",
        interpreter_of(version).path,
        "--format",
        "json",
        "--force",
        *options,
        f"{name}.py",
        output,
    )
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout, [json.loads(line) for line in (directory / output).read_text().splitlines()]


@each_version
def test_values(version: Version, tmp_path: Path) -> None:
    """With values the same is executed; what LOAD_CONST loads is on top before the next instruction."""
    interpreter_of(version)
    checked = 0
    for name in ("basic", *(["modern"] if version >= (3, 6) else []), *(["groups"] if version >= (3, 11) else [])):
        program(tmp_path, name)
        plain, expected = traced(tmp_path, version, name, "-r")
        shown, rows = traced(tmp_path, version, name, "-r", "--values")
        assert shown == plain
        stacks = [row.pop("stack", None) for row in rows]
        assert rows == expected
        for (one, _), (two, stack) in pairwise(zip(rows, stacks, strict=True)):
            if one["name"] == "LOAD_CONST" and two["name"] in FALLS_THROUGH and stack is not None:
                meaning = str(one["meaning"])
                if re.fullmatch(r"-?\d{1,9}|None|True|'\w{1,40}'", meaning):
                    assert re.search(rf"(^\[|, ){re.escape(meaning)}\]$", stack), (one, two, stack)
                    checked += 1
    assert checked > 50


OBJECTS = """\
class Bad(object):
    def __repr__(self):
        raise SystemExit("the program's own code ran")
    __str__ = __len__ = __getitem__ = __repr__
def show(*values):
    return values
show(Bad(), [Bad(), 1], 10 ** 40, "x" * 500, b"y", 2.5, (1, (2,)), Bad)
"""


@each_version
def test_no_code_of_the_program_runs_for_values(version: Version, tmp_path: Path) -> None:
    (tmp_path / "objects.py").write_text(OBJECTS)
    _, rows = traced(tmp_path, version, "objects", "--values")
    (stack,) = [row["stack"] for row in rows if row["code"] == "show" and row["name"] == "RETURN_VALUE"]
    assert re.fullmatch(
        r"\[\(<Bad at 0x\w+>, <list at 0x\w+>, <\w+ of more than 64 bits>, 'x{48}'\.\.\., \.\.\.\)\]", stack
    )


THREADS = """\
import threading
def work(n):
    total = 0
    for i in range(n):
        total += i
    return total
threads = [threading.Thread(target=work, args=(20000,)) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print("done")
"""


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 9), (3, 11), (3, 12), (3, 13)], ids=name_of)
def test_threads(version: Version, tmp_path: Path) -> None:
    """Each thread's own instructions are those of one alone, whatever their order."""
    (tmp_path / "threads.py").write_text(THREADS)
    shown, rows = traced(tmp_path, version, "threads")
    assert shown == "done\n"
    by_thread: dict[int, list[int]] = {}
    for row in rows:
        if row["code"] == "work":
            by_thread.setdefault(row["thread"], []).append(row["offset"])
    sequences = list(by_thread.values())
    assert sum(sequence.count(sequences[0][0]) for sequence in sequences) == 3
    assert sum(len(sequence) for sequence in sequences) > 3 * 60_000
    once = sequences[0][: len(sequences[0]) // sequences[0].count(sequences[0][0])]
    assert all(sequence == once * sequence.count(once[0]) for sequence in sequences)


FORK = """\
import os, sys
def child():
    return sum(range(10))
def parent():
    return os.waitpid(pid, 0)[1]
pid = os.fork()
if pid == 0:
    for i in range(200000): child()
    os._exit(3)
print(parent() >> 8)
"""


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 13)], ids=name_of)
def test_forked_children_are_not_recorded(version: Version, tmp_path: Path) -> None:
    (tmp_path / "fork.py").write_text(FORK)
    shown, rows = traced(tmp_path, version, "fork")
    assert shown == "3\n"
    names = {row["code"] for row in rows}
    assert "parent" in names and "child" not in names


SETTRACE = """\
import sys
def traced(x):
    return x + 1
def later(x):
    return x + 2
seen = []
before = sys.gettrace()
sys.settrace(lambda frame, event, arg: seen.append((event, frame.f_code.co_name)))
traced(1)
sys.settrace(before)
later(1)
print(seen)
"""


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 11), (3, 13)], ids=name_of)
def test_a_trace_function_of_the_programs_own(version: Version, tmp_path: Path) -> None:
    (tmp_path / "settrace.py").write_text(SETTRACE)
    shown, rows = traced(tmp_path, version, "settrace")
    assert shown == "[('call', 'traced')]\n"
    names = {row["code"] for row in rows}
    assert "later" in names
    assert version < (3, 12) or "traced" in names


def test_limit_ends_a_long_recording(tmp_path: Path) -> None:
    interpreter_of((3, 13))
    (tmp_path / "long.py").write_text("for i in range(3_000_000): pass\nprint('end')\n")
    shown, rows = traced(tmp_path, (3, 13), "long", "--limit", "10")
    assert (shown, len(rows)) == ("end\n", 10)

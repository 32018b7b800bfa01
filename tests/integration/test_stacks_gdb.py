"""Captured stacks are those that gdb sees at the same moment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.gdb_stacks import compare

EVERY = {"modules": ["none"], "python": "off", "stacks_every_ns": 4_000_000}
SCRIPT = """
import re, time
end = time.process_time() + {seconds}
while time.process_time() < end:
    str({{str(k): [k] * 9 for k in range(200)}})
    re.sub(r'(a|b)+c', 'x', 'ababc' * 300)
    sorted(range(1000), key=lambda x: -x)
"""
GDB_SCRIPT = """
set pagination off
file {program}
python
import time
end = time.process_time() + {seconds}
while time.process_time() < end:
    gdb.execute("disassemble main", to_string=True)
    gdb.execute("info scope main", to_string=True)
    gdb.parse_and_eval("1+2*sizeof(int)")
end
"""


def check(command: list[str | Path], program: str, directory: Path, cache: Path, count: int) -> None:
    """At least 99.9 % of frames are the same, in address, function and line, inlined ones too."""
    done = compare(command, directory, cache, count, program, EVERY)
    sys.stdout.write(
        f"{program}: {done.stacks:,} stacks, {done.frames:,} frames: {done.wrong} at other addresses; "
        f"of {done.named:,} with those inlined {done.names} have other names, {done.lines} other lines\n"
    )
    assert done.stacks >= count * 0.9
    assert done.wrong <= done.frames // 1000, done.examples
    assert done.names + done.lines <= done.named // 1000, done.examples


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not have("gdb", "g++"):
        pytest.skip("gdb or g++ is not installed")
    flags = ["-O3", "-g", "-fomit-frame-pointer"]
    return compile_program([TARGETS / "captures_deep.cpp"], tmp_path_factory.mktemp("deep") / "deep", flags)


def test_templates_and_signal_handlers(deep: Path, tmp_path: Path, plan_cache: Path) -> None:
    check([deep, "2000"], "deep", tmp_path, plan_cache, 60)


@pytest.mark.long
def test_a_thousand_of_templates(deep: Path, tmp_path: Path, plan_cache: Path) -> None:
    check([deep, "12000"], "deep", tmp_path, plan_cache, 1000)


@pytest.mark.long
def test_a_thousand_of_python(deep: Path, tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(SCRIPT.format(seconds=8))
    check(["/usr/bin/python3", script], Path("/usr/bin/python3").resolve().name, tmp_path, plan_cache, 1000)


@pytest.mark.long
def test_a_thousand_of_gdb(deep: Path, tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "load.gdb"
    script.write_text(GDB_SCRIPT.format(program=deep, seconds=8))
    check(["/usr/bin/gdb", "-nx", "-batch", "-x", script], "gdb", tmp_path, plan_cache, 1000)

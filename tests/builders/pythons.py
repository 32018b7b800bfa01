"""CPython of other versions on this machine, and `callscope bytecode` in them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from callscope.bytecode.interpreters import SUPPORTED, Interpreter, Version, find_version
from callscope.errors import RecordError
from tests.builders.tracing import ROOT, tool_environment

PROGRAMS = ROOT / "tests/targets/bytecode"
VERSIONS = sorted(SUPPORTED)


def name_of(version: Version) -> str:
    return ".".join(map(str, version))


@functools.cache
def installed(version: Version) -> Interpreter | None:
    try:
        return find_version(version)
    except RecordError:
        return None


def interpreter_of(version: Version) -> Interpreter:
    """Skips the test when there is none."""
    found = installed(version)
    if found is None:
        pytest.skip(f"there is no CPython {name_of(version)}")
    return found


def rarely(version: Version) -> list[pytest.MarkDecorator]:
    """Marks of a case: those versions are `long` whose bytecode is recorded as that of a neighbour among the others."""
    return [pytest.mark.long] if version in {(3, 6), (3, 7), (3, 8), (3, 9), (3, 10)} else []


each_version = pytest.mark.parametrize(
    "version", [pytest.param(version, marks=rarely(version), id=name_of(version)) for version in VERSIONS]
)


def bytecode(directory: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command, in `directory`."""
    command = [sys.executable, "-m", "callscope", "bytecode", *map(str, arguments)]
    environment = tool_environment(directory)
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def program(directory: Path, name: str) -> Path:
    """A source file of the corpus, copied there. In the tree the suffix is another: no version can read all."""
    path = directory / f"{name}.py"
    path.write_bytes((PROGRAMS / f"{name}.txt").read_bytes())
    return path


def compiled(version: Version, source: Path) -> Path:
    """Its .pyc of a version, beside it; the code's file name is without a directory."""
    script = "import py_compile, sys; py_compile.compile(sys.argv[1], sys.argv[2], sys.argv[1], True)"
    output = source.with_suffix(".pyc")
    command = [interpreter_of(version).path, "-c", script, source.name, output.name]
    subprocess.run(command, cwd=source.parent, check=True, capture_output=True)
    return output


def calls_of(trace: Path) -> list[dict[str, Any]]:
    """The calls of a trace."""
    command = [sys.executable, "-m", "callscope", "calls", "--format", "json", str(trace)]
    done = subprocess.run(command, env=tool_environment(trace.parent), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

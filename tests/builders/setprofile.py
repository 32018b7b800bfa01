"""What sys.setprofile tells of calls, and a trace of the same."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import callscope
from tests.builders.compilers import TARGETS
from tests.builders.pythons import VERSIONS, installed, name_of
from tests.builders.tracing import tool_environment

REFERENCE = TARGETS / "python" / "reference.py"
CALLS = TARGETS / "python" / "calls.py"
OLDEST = (3, 9)
QUIET = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

Shape = list[list[Any]]
"""[depth, last part of the name] of calls, in the order in which they began."""


@functools.cache
def pythons() -> dict[str, Path]:
    """The interpreters of this machine whose calls can be recorded, by version."""
    found = {name_of(version): installed(version) for version in VERSIONS if version >= OLDEST}
    return {name: Path(interpreter.path) for name, interpreter in found.items() if interpreter is not None}


def surroundings(directory: Path) -> dict[str, str]:
    """Variables with which a program makes the same calls each time; its temporary files are in `directory`."""
    return QUIET | {"TMPDIR": str(directory)}


def reference(python: Path, file: str | Path, function: str, log: Path) -> Shape:
    """What sys.setprofile logs of `function` and what it calls. `log`: a file to write, in the test's directory."""
    command = [python, REFERENCE, file, function, log]
    same = {"PYTHONPATH": tool_environment(log)["PYTHONPATH"]}  # as run_traced has it: imports show in the calls
    subprocess.run(command, check=True, env=os.environ | surroundings(log.parent) | same, capture_output=True)
    return below([(depth, name) for depth, name in json.loads(log.read_text())], function)


def recorded(trace: Path, function: str) -> Shape:
    """The same of a trace."""
    with callscope.open(trace) as tables:
        rows = tables.sql(
            f"SELECT depth, function, tid FROM calls WHERE tid = "
            f"(SELECT tid FROM calls WHERE function = '{function}' OR function LIKE '%.{function}' "
            f"ORDER BY call_id LIMIT 1) ORDER BY call_id"
        ).fetchall()
    return below([(depth, name.rsplit(".", 1)[-1]) for depth, name, _ in rows], function)


def below(calls: list[tuple[int, str]], function: str) -> Shape:
    """The first call of `function` and what it led to, depths counted from it."""
    start = next(at for at, (_, name) in enumerate(calls) if name == function)
    top = calls[start][0]
    end = next((at for at in range(start + 1, len(calls)) if calls[at][0] <= top), len(calls))
    return [[depth - top, name] for depth, name in calls[start:end]]

"""The mixed tree against gdb: native frames from its back-traces, Python's from the interpreter it has stopped."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import callscope
from tests.builders.compilers import have
from tests.builders.setprofile import QUIET, pythons
from tests.builders.tracing import run_traced

POINTS = 10
PROGRAM = """
import json
class Reader:
    def read(self, text): return json.loads(text)
def each(texts):
    for text in texts:
        yield Reader().read(text)
def hook(value): return json.loads(value["b"]) if "b" in value else value
def decode(text): return json.loads(text, object_hook=hook)
def main():
    list(each(['{"a": [1, 2]}', '[3, {"c": "d"}]']))
    decode('{"x": {"b": "[4]"}}')
    sorted(['[1]', '[2]'], key=json.loads)
main()
"""
FRAMES = "import sys\\nf = sys._getframe(1)\\nwhile f: print('PYTHON', f.f_code.co_name, flush=True); f = f.f_back"
SCRIPT = f"""
set pagination off
set breakpoint pending on
set confirm off
set print frame-arguments none
break scan_once_unicode
commands
silent
printf "POINT\\n"
backtrace
call (int)PyRun_SimpleString("{FRAMES}")
continue
end
run
"""


def points(python: Path, directory: Path) -> list[tuple[list[str], list[str]]]:
    """(functions of _json, Python functions) open at each stop, innermost first."""
    (directory / "script").write_text(SCRIPT)
    command = ["gdb", "-q", "-nx", "-batch", "-x", "script", "--args", str(python), "program.py"]
    done = subprocess.run(command, cwd=directory, env=QUIET, capture_output=True, text=True, timeout=300)
    found = []
    for text in done.stdout.split("POINT\n")[1:]:
        names = re.findall(r"^#\d+ +(?:0x[0-9a-f]+ in )?(\w+) .* at .*/_json\.c:", text, re.MULTILINE)
        found.append((names, re.findall(r"^PYTHON (.*)", text, re.MULTILINE)))
    return found


@pytest.mark.skipif(not have("gdb"), reason="gdb is not installed")
@pytest.mark.parametrize("version", pythons())
def test_paths_are_those_of_gdb(version: str, tmp_path: Path, plan_cache: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    wanted = points(pythons()[version].resolve(), tmp_path)
    if not wanted or not wanted[0][0] or not wanted[0][1]:
        pytest.skip("this interpreter has no debugging information")
    assert len(wanted) >= POINTS
    command = [pythons()[version], tmp_path / "program.py"]
    outcome = run_traced(command, tmp_path / "trace", plan_cache, env=QUIET, recording={"modules": ("_json*",)})
    assert outcome.status == 0, outcome.errors
    with callscope.open(tmp_path / "trace") as tables:
        query = "SELECT call_id, parent_id, module, function FROM calls ORDER BY call_id"
        calls = {row[0]: row[1:] for row in tables.sql(query).fetchall()}
    found = []
    for call, (_, _, function) in calls.items():
        if function != "scan_once_unicode":
            continue
        native, python, at = [], [], call
        while at is not None:
            parent, module, name = calls[at]
            if module.startswith("_json."):
                native.append(name)
            elif module not in ("builtins", "re") and not name.startswith("_json"):
                python.append(name.rsplit(".", 1)[-1])
            at = parent
        found.append((native, python))
    assert len(found) == len(wanted)
    for (native, python), (gdb_native, gdb_python) in zip(found, wanted, strict=True):
        assert python == gdb_python
        assert native == [name for name in gdb_native if name in set(native)], "gdb names what was inlined, too"

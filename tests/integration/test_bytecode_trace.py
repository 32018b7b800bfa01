"""`callscope bytecode --format trace`: instructions as calls of an ordinary trace."""

import subprocess
import sys
from pathlib import Path

import pytest

from callscope.bytecode.interpreters import Version
from tests.builders.pythons import bytecode, calls_of, interpreter_of, name_of, program
from tests.builders.tracing import tool_environment


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 11), (3, 13)], ids=name_of)
def test_instructions_lie_under_their_call(version: Version, tmp_path: Path) -> None:
    options = ("--python", interpreter_of(version).path, "-r")
    program(tmp_path, "basic")
    text = bytecode(tmp_path, *options, "basic.py", "trace.txt")
    done = bytecode(tmp_path, *options, "--format", "trace", "basic.py", "basic.trace")
    assert (done.returncode, done.stdout, done.stderr) == (0, text.stdout, "")
    calls = calls_of(tmp_path / "basic.trace")
    by_id = {call["call_id"]: call for call in calls}
    lines = []
    for call in calls:
        if call["function"].split(" ")[0].isdigit():
            caller = by_id[call["parent_id"]]["function"]
            lines.append(f"{caller.rpartition('.')[2]}> {call['function']}")
    assert lines == (tmp_path / "trace.txt").read_text().splitlines()
    assert {call["ended_by"] for call in calls} == {"return", "unwound"}
    roots = [call["function"] for call in calls if call["parent_id"] is None]
    assert roots == ["<module>"]


def test_recursion_nests(tmp_path: Path) -> None:
    program(tmp_path, "factorial")
    assert bytecode(tmp_path, "--format", "trace", "factorial.py", "f.trace").returncode == 0
    command = [sys.executable, "-m", "callscope", "tree", str(tmp_path / "f.trace"), "-f", "recur_factorial"]
    done = subprocess.run(command, env=tool_environment(tmp_path), capture_output=True, text=True)
    depths = [line.index("recur_factorial() {") for line in done.stdout.splitlines() if "recur_factorial() {" in line]
    assert len(depths) == 3 and depths == sorted(set(depths))


def test_an_earlier_trace_is_kept_and_filters_refused(tmp_path: Path) -> None:
    program(tmp_path, "factorial")
    for _ in range(2):
        assert bytecode(tmp_path, "--format", "trace", "factorial.py", "f.trace").returncode == 0
    assert (tmp_path / "f.trace.old/session.json").exists()
    assert bytecode(tmp_path, "--format", "trace", "--limit", "3", "factorial.py", "g.trace").returncode == 2
    (tmp_path / "file").write_text("kept")
    done = bytecode(tmp_path, "--format", "trace", "factorial.py", "file")
    assert (done.returncode, done.stdout, (tmp_path / "file").read_text()) == (2, "", "kept")

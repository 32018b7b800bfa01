"""`callscope check`: what it says of programs whose flags are known."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope

CASES: list[tuple[list[str], dict[str, Any], int]] = [
    (["-O2", "-g", "-finstrument-functions"], {"instrumented": True, "debug": "file", "stripped": False}, 0),
    (["-O2"], {"instrumented": False, "debug": "", "kind": "pie"}, 2),
    (["-O2", "-s", "-no-pie", "-fno-pie"], {"stripped": True, "kind": "exec"}, 3),
    (["-O2", "-g", "-pg"], {"profiled": "mcount"}, 1),
    (["-O2", "-g", "-pg", "-mfentry"], {"profiled": "__fentry__"}, 1),
    (["-O2", "-g", "-fpatchable-function-entry=8"], {"patchable": True}, 1),
    (["-O0", "-g", "-fcf-protection=full"], {"kind": "pie"}, 1),
    (["-O2", "-static"], {"kind": "static"}, 1),
    (["-O2", "-g", "-shared", "-fPIC"], {"kind": "shared"}, 1),
]


@pytest.mark.parametrize(
    ("flags", "expected", "advice"), CASES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_programs(flags: list[str], expected: dict[str, Any], advice: int, tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "instrumented.c"], tmp_path / "program", flags)
    found = json.loads(callscope(["check", program, "--format", "json"], plan_cache).output)
    assert {name: found[name] for name in expected} == expected
    assert len(found["advice"]) == advice, found["advice"]
    assert (found["frame_pointers"] > 0.5) == ("-O0" in flags)
    text = callscope(["check", program], plan_cache)
    assert text.status == 0
    assert found["build_id"] in text.output or not found["build_id"]


def test_separate_debug_files_and_nonsense(tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "instrumented.c"], tmp_path / "program", ["-g", "-O2"])
    subprocess.run(["objcopy", "--only-keep-debug", "program", "program.debug"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-S", "--add-gnu-debuglink=program.debug", "program"], cwd=tmp_path, check=True)
    found = json.loads(callscope(["check", program, "--format", "json"], plan_cache).output)
    assert (found["debug"], found["stripped"]) == ("separate", True)
    assert found["debug_file"] == str(tmp_path / "program.debug")
    bad = tmp_path / "bad"
    bad.write_bytes(program.read_bytes()[:5000])
    done = callscope(["check", bad], plan_cache)
    assert (done.status, done.output) == (1, "")
    assert done.errors.startswith("callscope: error: ")
    assert done.errors.count("\n") == 1

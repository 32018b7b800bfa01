"""callscope.h: a program that uses it runs the same without an agent, and records what it says with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, count_calls, run_plain, run_traced
from tests.builders.windows import Windows, lacking

INCLUDE = Path(__file__).resolve().parents[2] / "native/include"
BUILDS = [
    ("gcc", ["-O0"]),
    ("gcc", ["-O2"]),
    ("gcc", ["-O2", "-no-pie", "-fno-pie"]),
    ("gcc", ["-O2", "-xc++"]),
    ("gcc", ["-O2", "-finstrument-functions"]),
    ("zig", ["-O2"]),
]


WINDOWS_BUILDS = [("mingw", ["-O0"]), ("mingw", ["-O2"]), ("mingw", ["-O2", "-xc++"]), ("zig-windows", ["-O2"])]


@pytest.mark.parametrize(("compiler", "flags"), BUILDS, ids=lambda value: " ".join(value) if value[0] == "-" else "")
def test_what_a_program_says(compiler: str, flags: list[str], tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "api.c"], tmp_path / "api", [f"-I{INCLUDE}", "-g", *flags], compiler)
    plain = run_plain([program])
    assert (plain.output, plain.errors, plain.status) == ("done\n", "", 0)
    trace = tmp_path / "api.trace"
    traced = run_traced([program], trace, plan_cache, recording={"args": True})
    assert (traced.output, traced.status) == ("done\n", 0), traced.errors
    check(trace, plan_cache)


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
@pytest.mark.parametrize(
    ("compiler", "flags"), WINDOWS_BUILDS, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_what_a_windows_program_says(compiler: str, flags: list[str], windows: Windows, tmp_path: Path) -> None:
    program = compile_program([TARGETS / "api.c"], tmp_path / "api.exe", [f"-I{INCLUDE}", "-g", *flags], compiler)
    plain = windows.plain(program)
    assert (plain.output, plain.status) == ("done\n", 0)
    trace = tmp_path / "api.trace"
    traced = windows.traced(trace, program, args=True)
    assert (traced.output, traced.status) == ("done\n", 0), traced.errors
    check(trace, windows.cache)


def check(trace: Path, cache: Path) -> None:
    names = ("recorded", "stopped", "paused")
    # A PDB has parameters in names.
    assert [count_calls(trace, name) + count_calls(trace, f"{name}(int)") for name in names] == [101, 0, 0]
    threads = json.loads(callscope(["info", trace, "--threads", "--format", "json"], cache).output)
    assert [thread["name"] for thread in threads] == ["chief"]
    facts = json.loads(callscope(["info", trace, "--format", "json"], cache).output)
    assert [marker["text"] for marker in facts["markers"]] == ["half ä done", "while paused"]
    assert facts["markers"][0]["time_ns"] <= facts["markers"][1]["time_ns"]
    lines = callscope(["tree", trace, "--limit", "0"], cache).output.splitlines()
    (at,) = [number for number, line in enumerate(lines) if "marker: half ä done" in line]
    assert sum("recorded" in line for line in lines[:at]) == 100
    assert not any("unwound" in line for line in lines)
    exported = json.loads(callscope(["export", trace, "--to", "json", "-o", "-"], cache).output)
    assert [marker["text"] for marker in exported["markers"]] == ["half ä done", "while paused"]
    timeline = json.loads(callscope(["export", trace, "--to", "chrome", "-o", "-"], cache).output)
    assert [event["name"] for event in timeline["traceEvents"] if event["ph"] == "i"] == ["half ä done", "while paused"]

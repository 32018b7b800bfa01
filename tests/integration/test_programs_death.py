"""Programs that die in the middle of their work: every call made before is in the trace."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, count_calls, run_traced, tool_environment


@pytest.fixture(scope="module")
def death(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("death")
    return compile_program([TARGETS / "death.c"], directory / "death", ["-O2", "-pthread"])


@pytest.mark.parametrize("clock", ["tsc", "none"])
@pytest.mark.parametrize(
    ("how", "status"), [("kill", 137), ("abort", 134), ("exit", 7), ("fault", 139), ("stack", 139), ("thread", 137)]
)
def test_every_call_before_death_is_there(
    how: str, status: int, clock: str, death: Path, tmp_path: Path, plan_cache: Path
) -> None:
    outcome = run_traced([death, how, "500"], tmp_path / "t", plan_cache, recording={"clock": clock})
    assert outcome.status == status
    assert outcome.output.splitlines()[-1] == "50000"
    calls = count_calls(tmp_path / "t", "counted")
    assert calls >= 50000 if how == "thread" else calls == 50000
    assert count_calls(tmp_path / "t", "run") == 1


def test_calls_open_at_death_are_running(death: Path, tmp_path: Path, plan_cache: Path) -> None:
    run_traced([death, "kill", "5"], tmp_path / "t", plan_cache)
    listed = callscope(["calls", tmp_path / "t", "--format", "json", "--function", "run"], plan_cache)
    assert listed.status == 0, listed
    assert '"ended_by":"running"' in listed.output.replace(" ", "")


CRASH = """
__attribute__((noinline)) void deep(char *p, int n) { if (n) deep(p, n - 1); else *p = 1; __asm__ volatile(""); }
__attribute__((noinline)) void outer(char *p) { deep(p, 2); __asm__ volatile(""); }
__attribute__((noinline)) void before(void) { __asm__ volatile(""); }
int main(void) { before(); outer((char *)8); return 0; }
"""


def test_info_says_who_was_at_work_when_a_signal_ended_the_program(tmp_path: Path, plan_cache: Path) -> None:
    (tmp_path / "crash.c").write_text(CRASH)
    program = compile_program([tmp_path / "crash.c"], tmp_path / "crash", ["-O1"])
    assert run_traced([program], tmp_path / "t", plan_cache).status == 139
    facts = json.loads(callscope(["info", tmp_path / "t", "--format", "json"], plan_cache).output)
    assert [row["function"] for row in facts["last_at_work"]["functions"]] == [
        "_start", "main", "outer", "deep", "deep", "deep",
    ]  # fmt: skip
    text = callscope(["info", tmp_path / "t"], plan_cache).output
    assert "At work    ... > main > outer > deep > deep > deep (thread " in text


def wait_for_lines(path: Path, lines: int) -> int:
    """Wait until a file has as many lines; the number on its last complete one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        complete = path.read_text().split("\n")[:-1]
        if len(complete) >= lines:
            return int(complete[-1])
        time.sleep(0.02)
    raise AssertionError("the program does not get on")


@pytest.mark.parametrize("victims", ["program", "recorder", "both"])
def test_killed_from_outside(victims: str, death: Path, tmp_path: Path, plan_cache: Path) -> None:
    output = tmp_path / "output"
    settings = f'{{"command": ["{death}", "exit", "1000000000"], "output": "{tmp_path}/t"}}'
    with output.open("w") as stream:
        recorder = subprocess.Popen(
            [sys.executable, "-m", "tests.builders.record_one", settings],
            stdout=stream,
            env=tool_environment(plan_cache),
        )
    wait_for_lines(output, 200)
    program = int(subprocess.check_output(["pgrep", "-P", str(recorder.pid)], text=True).split()[0])
    try:
        if victims != "program":
            recorder.kill()
            recorder.wait()
        if victims == "recorder":
            now = wait_for_lines(output, 0)
            wait_for_lines(output, now // 100 + 100)
    finally:
        os.kill(program, signal.SIGKILL)
    recorder.wait()
    time.sleep(0.2)
    made = wait_for_lines(output, 1)
    assert made <= count_calls(tmp_path / "t", "counted") <= made + 200
    shown = callscope(["info", tmp_path / "t"], plan_cache)
    assert shown.status == 0, shown

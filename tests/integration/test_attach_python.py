"""Attaching to running Python programs: calls of Python functions appear from then on, and nothing stays behind."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS
from tests.builders.setprofile import pythons
from tests.builders.tracing import callscope, count_calls
from tests.integration.test_attach import changed_code

CALLS_OF_FIB = 67
"""that one call of work() in tests/targets/python/attached.py makes"""
THREADS = 4
NOBODY = 65534


@contextmanager
def running(
    python: Path, *words: str, before: Sequence[str] = (), script: Path = TARGETS / "python/attached.py"
) -> Iterator[int]:
    """The program, which must end as if nothing had been. before: what starts it, by exec."""
    pipe = subprocess.PIPE
    command = [*before, str(python), str(script), *words]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        assert process.communicate("", 30) == ("[] None\n", "")
        assert process.returncode == 0


@pytest.mark.parametrize("version", pythons())
def test_calls_are_recorded_from_then_on(version: str, plan_cache: Path, tmp_path: Path) -> None:
    with running(pythons()[version]) as pid:
        for number in range(3):
            trace = tmp_path / str(number)
            outcome = callscope(["attach", str(pid), "-o", trace, "--duration", "100ms"], plan_cache)
            assert outcome.status == 0, outcome.errors
            assert "not traced" not in outcome.errors
            works, calls = count_calls(trace, "work"), count_calls(trace, "fib")
            # Of work() that was under way at the beginning or the end, only a part is there; one thread has a profiler
            # of its own: up to 3.11 it is not recorded, from 3.12 on beside it.
            own = count_calls(trace, "profiled_work")
            assert works > 10
            assert (own > 0) == (int(version.split(".")[1]) >= 12)
            assert abs((works + own) * CALLS_OF_FIB - calls) <= THREADS * CALLS_OF_FIB
            assert abs(count_calls(trace, "ord") - works) <= THREADS
            assert changed_code(pid) == []


def test_a_thread_that_never_sleeps_is_no_hindrance(plan_cache: Path, tmp_path: Path) -> None:
    with running(list(pythons().values())[-1], "busy") as pid:
        for number in range(2):
            trace = tmp_path / str(number)
            outcome = callscope(["attach", str(pid), "-o", trace, "--duration", "100ms"], plan_cache)
            assert outcome.status == 0, outcome.errors
            works, calls = count_calls(trace, "work"), count_calls(trace, "fib")
            own = count_calls(trace, "profiled_work")
            assert works > 10
            assert abs((works + own) * CALLS_OF_FIB - calls) <= (THREADS + 1) * CALLS_OF_FIB


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_users_interpreter_is_recorded(plan_cache: Path, tmp_path: Path) -> None:
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    script = Path(shutil.copy(TARGETS / "python/attached.py", tmp_path))
    for above in [script, *list(script.parents)[:-2]]:
        above.chmod(above.stat().st_mode | 0o055)
    with running(Path("/usr/bin/python3"), before=become, script=script) as pid:
        for number in range(2):
            trace = tmp_path / str(number)
            outcome = callscope(["attach", str(pid), "-o", trace, "--duration", "100ms"], plan_cache)
            assert outcome.status == 0, outcome.errors
            assert count_calls(trace, "work") > 10


def test_functions_are_chosen_and_native_ones_stand_beside(plan_cache: Path, tmp_path: Path) -> None:
    with running(list(pythons().values())[-1]) as pid:
        chosen = ["-f", "work", "-f", "time!sleep", "-f", "libc.so.6!*clock_nanosleep*"]
        outcome = callscope(["attach", str(pid), "-o", tmp_path / "t", "--duration", "100ms", *chosen], plan_cache)
        assert outcome.status == 0, outcome.errors
        assert count_calls(tmp_path / "t", "work") > 10
        assert count_calls(tmp_path / "t", "fib") == 0
        assert count_calls(tmp_path / "t", "sleep") > 10
        assert sum(count_calls(tmp_path / "t", name) for name in ("clock_nanosleep", "__clock_nanosleep")) > 10
        only = callscope(
            ["attach", str(pid), "-o", tmp_path / "only", "--duration", "50ms", "--python-only"], plan_cache
        )
        assert only.status == 0, only.errors
        assert count_calls(tmp_path / "only", "fib") > 10
        none = callscope(["attach", str(pid), "-o", tmp_path / "none", "--duration", "50ms", "--no-python"], plan_cache)
        assert none.status == 0, none.errors
        assert count_calls(tmp_path / "none", "fib") == 0

"""Stacks of Windows programs in intervals, whose functions on the stack are known at every moment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from callscope.recording.wine import find_wine
from callscope.reports.stacks import Stacks, ends
from callscope.trace.open import open_trace
from tests.builders.tracing import callscope
from tests.builders.windows import Windows, compile_windows, lacking

pytestmark = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
DEPTH = 12
KINDS = ("k0_small", "k1_large", "k2_variable", "k3_registers", "k4_vector")
CHAIN = [KINDS[(depth * depth + depth // 2) % 5] for depth in range(DEPTH, 0, -1)]
"""what every thread at work has on its stack, from the outermost function on, as in windows_sampled.c"""
MILLISECOND = 1_000_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_windows("windows_sampled.c", tmp_path_factory.mktemp("sampled") / "sampled.exe", "-g")


def check_chains(trace: Path, least: int) -> Counter[int]:
    """Assert that every stack is one that the program can have, and that there are so many; how many by thread."""
    counts: Counter[int] = Counter()
    deepest = 0
    for one, group in Stacks(open_trace(trace)).each():
        names = [frame.function or "" for frame in group.frames]
        assert ends(group) is None, names
        assert (one.cause, one.tag) == ("timer", 0)
        counts[one.tid] += 1
        if "work" in names:
            own = [name for name in names[: names.index("work")] if name in KINDS]
            assert own[::-1] == CHAIN[: len(own)], names
            deepest = max(deepest, len(own))
    assert DEPTH // 2 < deepest <= DEPTH and counts.total() >= least
    return counts


@pytest.mark.parametrize("functions", [(), ("k4*",)], ids=["plain", "traced"])
def test_stacks_at_any_instruction(windows: Windows, program: Path, tmp_path: Path, functions: tuple[str, ...]) -> None:
    """Threads are stopped in prologues, epilogues, functions without frames, trampolines and the agent's routines."""
    modules = ("sampled.exe",) if functions else ("none",)
    recording = {"stacks_every_ns": MILLISECOND, "modules": modules, "functions": functions}
    outcome = windows.traced(tmp_path / "t", program, "work", "1000", **recording)
    assert outcome.status == 0, outcome.errors
    counts = check_chains(tmp_path / "t", 20)
    first, second, pauses = map(int, outcome.output.split())
    # By processor time: nearly none where a thread pauses.
    assert min(counts[first], counts[second]) > 20
    assert max(counts[first], counts[second]) <= 1130
    assert counts[pauses] < 100


def test_threads_with_locks_are_stopped(windows: Windows, program: Path, tmp_path: Path) -> None:
    """Threads hold the heap's lock, the loader's, and are being born, and the program ends all the same."""
    outcome = windows.traced(tmp_path / "t", program, "locks", "1000", stacks_every_ns=MILLISECOND, modules=("none",))
    assert outcome.status == 0, outcome.errors
    allocating = {int(tid) for tid in outcome.output.split()[:2]}
    names: Counter[str] = Counter()
    for one, group in Stacks(open_trace(tmp_path / "t")).each():
        if one.tid in allocating:
            names.update({frame.function or "" for frame in group.frames})
    assert names["allocate"] > 20


@pytest.mark.parametrize("rounds", [5, pytest.param(40, marks=pytest.mark.long)])
def test_a_process_ends_while_its_threads_are_stopped(
    windows: Windows, program: Path, tmp_path: Path, rounds: int
) -> None:
    for _ in range(rounds):
        outcome = windows.traced(tmp_path / "t", program, "end", stacks_every_ns=MILLISECOND, modules=("none",))
        assert (outcome.output, outcome.status) == ("end\n", 7), outcome.errors


def test_a_running_program_is_sampled(
    windows: Windows, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that run what is traced, from then on until the agent is detached; and again."""
    for name, value in windows.environment.items():
        monkeypatch.setenv(name, value)
    own = program.with_name("busy.exe")
    shutil.copy(program, own)
    with subprocess.Popen([find_wine(), str(own), "work", "60000"], env=os.environ) as process:
        try:
            while callscope(
                ["attach", own.name, "--duration", "100ms", "-o", tmp_path / "first"], windows.cache
            ).status:
                assert process.poll() is None  # it has not begun
            for number in range(2):
                words: list[str | Path] = ["attach", own.name, "--duration", "1s", "--stacks-every", "2ms", "-f", "k4*"]
                outcome = callscope([*words, "-o", tmp_path / str(number)], windows.cache)
                assert outcome.status == 0, outcome.errors
                check_chains(tmp_path / str(number), 20)
        finally:
            process.kill()


def test_what_windows_programs_cannot_have_is_refused(windows: Windows, program: Path, tmp_path: Path) -> None:
    for option, why in (("--stacks-every=500us", "every 1ms at most"), ("--stacks-on=USR2", "no signals")):
        outcome = callscope(["record", option, "-o", tmp_path / "trace", program], windows.cache)
        assert (outcome.status, outcome.output) == (2, "")
        assert why in outcome.errors and outcome.errors.count("\n") == 1

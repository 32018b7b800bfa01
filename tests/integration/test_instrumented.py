"""Programs built with the compiler's own instrumentation: calls that were inlined stand in the trace as calls."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from callscope.calls.build import build_calls
from callscope.reports.database import open_database
from callscope.trace.open import open_trace
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import run_plain, run_traced
from tests.builders.windows import Windows, lacking

HOOKS = "-finstrument-functions"
INCLUDE = Path(__file__).resolve().parents[2] / "native/include"
BUILDS = [
    ("gcc", ["-O0", HOOKS]),
    ("gcc", ["-O1", HOOKS]),
    ("gcc", ["-O2", HOOKS]),
    ("gcc", ["-O3", HOOKS, "-fno-plt"]),
    ("gcc", ["-O2", HOOKS, "-no-pie", "-fno-pie", "-fcf-protection=none"]),
    ("gcc", ["-Os", HOOKS, "-fno-omit-frame-pointer", "-Wl,-z,now"]),
    ("zig", ["-O0", HOOKS]),
    ("zig", ["-O2", HOOKS]),
]
EDGES = """
SELECT parent_functions.name AS caller, functions.name AS callee, count(*) AS times
FROM call_rows c JOIN functions USING (function_id)
LEFT JOIN call_rows parents ON parents.call_id = c.call_id - c.up AND c.up > 0
LEFT JOIN functions parent_functions ON parent_functions.function_id = parents.function_id
GROUP BY ALL
"""
OWN_HOOKS = """
#include <stdio.h>
static int entered, left;
#define QUIET __attribute__((no_instrument_function))
QUIET void __cyg_profile_func_enter(void *function, void *site) { entered++; }
QUIET void __cyg_profile_func_exit(void *function, void *site) { left++; }
__attribute__((noinline)) int leaf(int n) { return n * 3; }
QUIET int main(void) {
    volatile int sum = 0;
    for (int i = 0; i < 22; i++)
        sum += leaf(i);
    printf("%d\\n", entered + left);
}
"""


def pairs(trace: Path) -> Counter[tuple[str, str]]:
    """(caller, callee) -> times, of the program's functions; an outermost function has the caller '-'."""
    build_calls(open_trace(trace))
    found: Counter[tuple[str, str]] = Counter()
    for row in open_database(trace).rows(EDGES):
        # Clones have a suffix, names of a PDB parameters.
        caller, callee = (re.split(r"[.(]", str(row[name]))[0] for name in ("caller", "callee"))
        found[caller, callee] += int(str(row["times"]))
    return found


def told(output: str) -> Counter[tuple[str, str]]:
    """The same, as the program says."""
    lines = (line.split() for line in output.splitlines())
    return Counter({(caller, callee): int(times) for caller, callee, times in lines})


def compare_pairs(found: Counter[tuple[str, str]], output: str) -> None:
    expected = told(output)
    names = {name for pair in expected for name in pair}
    ours = Counter({pair: times for pair, times in found.items() if pair[1] in names and pair[1] != "main"})
    expected.pop(("-", "main"))
    assert ours == expected


@pytest.mark.parametrize(("compiler", "flags"), BUILDS, ids=lambda value: " ".join(value) if value[0] == "-" else "")
def test_inlined_calls_are_calls(compiler: str, flags: list[str], tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "instrumented.c"], tmp_path / "instrumented", ["-g", *flags], compiler)
    plain = run_plain([program])
    traced = run_traced([program], tmp_path / "trace", plan_cache)
    assert (traced.output, traced.status) == (plain.output, 0), traced.errors
    compare_pairs(pairs(tmp_path / "trace"), plain.output)


@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
@pytest.mark.parametrize(
    ("compiler", "level"), [("mingw", "-O0"), ("mingw", "-O2"), ("mingw", "-O3"), ("zig-windows", "-O2")]
)
def test_inlined_calls_of_windows_programs(compiler: str, level: str, windows: Windows, tmp_path: Path) -> None:
    sources = [TARGETS / "instrumented.c", INCLUDE / "callscope-hooks.c"]
    program = compile_program(sources, tmp_path / "instrumented.exe", ["-g", level, HOOKS, f"-I{INCLUDE}"], compiler)
    plain = windows.plain(program)
    traced = windows.traced(tmp_path / "trace", program)
    assert (traced.output, traced.status) == (plain.output, 0), traced.errors
    compare_pairs(pairs(tmp_path / "trace"), plain.output)


def test_inlined_calls_after_inlining(tmp_path: Path, plan_cache: Path) -> None:
    """-finstrument-functions-after-inlining tells of functions that are there: none stands twice."""
    flags = ["-O2", "-g", "-finstrument-functions-after-inlining"]
    program = compile_program([TARGETS / "instrumented.c"], tmp_path / "instrumented", flags, "zig")
    traced = run_traced([program], tmp_path / "trace", plan_cache)
    expected, found = told(traced.output), pairs(tmp_path / "trace")
    for name in ("branches", "nothing", "leaf", "compare", "lands"):
        times = sum(count for (_, callee), count in expected.items() if callee == name)
        assert sum(count for (_, callee), count in found.items() if callee == name) == times
    assert not any(callee == "twice" for _, callee in found)


@pytest.mark.parametrize("hooks", [["-pg"], ["-pg", "-mfentry"], ["-fpatchable-function-entry=16,8"]], ids=" ".join)
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_profiled_and_patchable_programs(level: str, hooks: list[str], tmp_path: Path, plan_cache: Path) -> None:
    """Their entries hold a call or room for one: they are patched like any other, and gprof's data is as without us."""
    program = compile_program([TARGETS / "instrumented.c"], tmp_path / "instrumented", ["-g", level, *hooks])
    plain = run_plain([program], cwd=tmp_path)
    traced = run_traced([program], tmp_path / "trace", plan_cache, cwd=tmp_path)
    assert (traced.output, traced.status) == (plain.output, 0), traced.errors
    expected, found = told(plain.output), pairs(tmp_path / "trace")
    for name in ("branches", "nothing", "leaf", "compare", "lands", "seven"):
        times = sum(count for (_, callee), count in expected.items() if callee == name)
        assert sum(count for (_, callee), count in found.items() if callee == name) == times
    assert (tmp_path / "gmon.out").exists() == ("-pg" in hooks)


def test_options_hold_for_inlined_calls(tmp_path: Path, plan_cache: Path) -> None:
    flags = ["-g", "-O2", HOOKS]
    program = compile_program([TARGETS / "instrumented.c"], tmp_path / "instrumented", flags)
    expected = told(run_plain([program]).output)

    def record(name: str, **options: object) -> Counter[tuple[str, str]]:
        run_traced([program], tmp_path / name, plan_cache, recording=options)
        return pairs(tmp_path / name)

    untimed = record("untimed", clock="none")
    assert untimed["add_twice", "twice"] == expected["add_twice", "twice"]
    without = record("without", excludes=["twice", "branches"])
    assert not any(callee in ("twice", "branches") for _, callee in without)
    assert without["main", "on_the_stack"] == expected["branches", "on_the_stack"]
    only = record("only", functions=["twice"])
    assert {callee for _, callee in only} == {"twice"}
    assert sum(only.values()) == sum(times for (_, callee), times in expected.items() if callee == "twice")
    shallow = record("shallow", max_depth=3)
    assert shallow["main", "branches"] == expected["main", "branches"]
    assert not any(caller == "seven" for caller, _ in shallow)


def test_a_program_with_hooks_of_its_own(tmp_path: Path, plan_cache: Path) -> None:
    """They are called as often as without us."""
    source = tmp_path / "own.c"
    source.write_text(OWN_HOOKS)
    for flags in (["-O2", HOOKS], ["-O2", HOOKS, "-rdynamic"]):
        program = compile_program([source], tmp_path / "own", flags)
        plain = run_plain([program])
        traced = run_traced([program], tmp_path / "trace", plan_cache)
        assert (traced.output, traced.status) == (plain.output, 0) == ("44\n", 0)

"""Our own hostile programs, traced whole: what they print and how they end is what it is untraced."""

import re
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import Outcome, read_calls, run_plain, run_traced

LEVELS = ("-O0", "-O2")
EVERYTHING = {"modules": ["all"]}


def same(plain: Outcome, traced: Outcome) -> None:
    """Assert that a program did the same; a recorder's status for a signal is 128 + N."""
    status = 128 - plain.status if plain.status < 0 else plain.status
    for name, before, after in (("output", plain.output, traced.output), ("errors", plain.errors, traced.errors)):
        difference = list(unified_diff(before.splitlines(), after.splitlines(), "plain", "traced", n=1, lineterm=""))
        assert not difference, f"{name} differ: " + "\n".join(difference[:40])
        assert before == after, name
    assert traced.status == status


@pytest.fixture(scope="session")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("targets")


def build(targets: Path, name: str, level: str, *flags: str, compiler: str = "gcc", output: str = "") -> Path:
    suffix = ".cpp" if (TARGETS / f"{name}.cpp").exists() else ".c"
    binary = targets / (output or f"{name}{level}-{compiler}")
    return compile_program([TARGETS / (name + suffix)], binary, [level, *flags, "-pthread"], compiler)


@pytest.mark.parametrize("modules", [[], ["all"]], ids=["main", "all"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["exceptions", "stacks", "threads", "processes"])
def test_behaves_as_untraced(
    name: str, level: str, modules: list[str], targets: Path, tmp_path: Path, plan_cache: Path
) -> None:
    program = build(targets, name, level)
    same(run_plain([program]), run_traced([program], tmp_path / "t", plan_cache, recording={"modules": modules}))
    assert read_calls(tmp_path / "t", ["call_id"])


@pytest.mark.parametrize("name", ["exceptions", "stacks"])
def test_behaves_as_untraced_when_built_by_clang(name: str, targets: Path, tmp_path: Path, plan_cache: Path) -> None:
    program = build(targets, name, "-O2", compiler="zig")
    same(run_plain([program]), run_traced([program], tmp_path / "t", plan_cache, recording=EVERYTHING))


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"clock": "none"}, {"keep_last": 4 << 20}, {"max_depth": 3}],
                         ids=["main", "all", "no clock", "keep last", "depth"])  # fmt: skip
def test_uncaught_exception_terminates(
    options: dict[str, object], targets: Path, tmp_path: Path, plan_cache: Path
) -> None:
    program = build(targets, "exceptions", "-O2")
    plain = run_plain([program, "uncaught"])
    assert plain.status == -6
    assert "nobody catches this" in plain.errors
    same(plain, run_traced([program, "uncaught"], tmp_path / "t", plan_cache, recording=options))


@pytest.mark.parametrize("modules", [[], ["all"], ["*"]], ids=["main", "all", "glob"])
def test_libraries_loaded_and_unloaded(modules: list[str], targets: Path, tmp_path: Path, plan_cache: Path) -> None:
    libraries = [build(targets, "plugin", "-O2", "-shared", "-fPIC", f"-DWHICH={n}", output=f"plugin{n}.so")
                 for n in (1, 2)]  # fmt: skip
    program = build(targets, "unload", "-O2")
    command = [program, *libraries]
    plain = run_plain(command)
    assert re.fullmatch(r"sum \d+, callbacks 1000\n", plain.output)
    traced = run_traced(command, tmp_path / "t", plan_cache, recording={"modules": modules})
    same(plain, traced)


def test_program_that_traces_itself_out_of_descriptors(targets: Path, tmp_path: Path, plan_cache: Path) -> None:
    """Under a limit of descriptors that leaves hardly any, the program still runs and is traced."""
    program = build(targets, "processes", "-O2")
    command = ["bash", "-c", 'ulimit -n 12; exec "$0"', str(program)]
    same(run_plain(command), run_traced(command, tmp_path / "t", plan_cache))

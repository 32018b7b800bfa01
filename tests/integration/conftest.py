"""What integration tests share: agents with plans made by hand, one plan cache, the totals of the random programs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.builders.agent_session import Session
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.small_plan import small_plan
from tests.builders.tracing import run_plain
from tests.builders.windows import Windows, compile_windows, keep_alive, make_prefix


@pytest.fixture(scope="session")
def plan_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan cache for this run of the tests, all workers together: plans of an older planner prove nothing."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    directory = shared / "plan-cache"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """name, functions -> the program and its plan, made once."""
    directory = tmp_path_factory.mktemp("agent")
    made: dict[tuple[str, ...], tuple[Path, Path]] = {}

    def make(name: str, *functions: str, shared: bool = False, delta: int = 0x4000000) -> tuple[Path, Path]:
        key = (name, str(delta), *functions)
        if key not in made:
            flags = ["-O0", "-pthread", *(["-shared", "-fPIC"] if shared else [])]
            program = compile_program([TARGETS / f"{name}.c"], directory / f"{name}{'.so' if shared else ''}", flags)
            made[key] = program, small_plan(program, functions, directory / f"{len(made)}.plan", delta).path
        return made[key]

    return make


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Session]:
    """Makes a session in a directory of the test."""

    def make(*modules: tuple[Path, Path], **settings: object) -> Session:
        return Session(tmp_path / "trace", dict(modules), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Iterator[Windows]:
    """A Wine prefix, its services running, and the programs tests/targets/windows_program.cpp and windows_plugin.c."""
    directory = tmp_path_factory.mktemp("windows")
    environment = make_prefix(directory)
    program = compile_windows("windows_program.cpp", directory / "program.exe")
    plugin = compile_windows("windows_plugin.c", directory / "plugin.dll", "-shared")
    with keep_alive(program, environment):
        yield Windows(environment, {"mingw": program}, plugin, plan_cache)
    run_plain(["wineserver", "-k"], env=os.environ | environment)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [dict(report.user_properties)["truth"] for report in reports if "truth" in dict(report.user_properties)]
    if rows:
        calls, parents, endings, skipped = (sum(column) for column in zip(*rows, strict=True))
        terminalreporter.write_line(
            f"random programs: {len(rows)} runs, {calls:,} calls, {parents} wrong parents, {endings} wrong endings, "
            f"{skipped:,} calls of unpatched functions left out"
        )

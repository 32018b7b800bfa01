"""`record --bisect` on a program whose functions notice that they are patched."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import run_plain, tool_environment

SCRIPT = """
import sys
from callscope.recording import bisect
bisect.LEAST_SECONDS = 2.0
from callscope.cli.main import main
sys.exit(main())
"""
WHY = {
    "crash": "ended by SIGABRT instead of exit status 0",
    "status": "exit status 9 instead of exit status 0",
    "output": "other output",
    "hang": "does not end",
}


@pytest.fixture(scope="session")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fragile")
    return compile_program([TARGETS / "fragile.c"], directory / "fragile", ["-O1", "-fcf-protection=none"])


def callscope(*arguments: object, cwd: Path, cache: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    environment = tool_environment(cache)
    return subprocess.run(command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=120)


def names(file: Path) -> list[str]:
    return re.findall(r"^# fragile!(\w+): ", file.read_text(), re.M)


@pytest.mark.parametrize("mode", WHY)
def test_function_that_notices_is_found_and_left_out(
    mode: str, fragile: Path, tmp_path: Path, plan_cache: Path
) -> None:
    done = callscope("record", "--bisect", fragile, mode, cwd=tmp_path, cache=plan_cache)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    file = tmp_path / "fragile.exclude"
    assert names(file) == ["delicate"]
    assert WHY[mode] in file.read_text()
    again = callscope("record", "--exclude-from", file, "--", fragile, mode, cwd=tmp_path, cache=plan_cache)
    plain = run_plain([fragile, mode]) if mode != "hang" else run_plain([fragile, "calm"])
    assert (again.stdout, again.returncode) == (plain.output, 0)


def test_several_functions_are_found(fragile: Path, tmp_path: Path, plan_cache: Path) -> None:
    (tmp_path / "fragile.exclude").write_text("mine\n")
    done = callscope("record", "--bisect", fragile, "two", cwd=tmp_path, cache=plan_cache)
    assert done.returncode == 0, done.stderr
    assert sorted(names(tmp_path / "fragile.exclude")) == ["delicate", "touchy"]
    assert (tmp_path / "fragile.exclude.old").read_text() == "mine\n"
    assert not list(tmp_path.glob("*.trace"))


@pytest.mark.parametrize("mode", ["calm", "random"])
def test_nothing_to_leave_out(mode: str, fragile: Path, tmp_path: Path, plan_cache: Path) -> None:
    done = callscope("record", "--bisect", fragile, mode, cwd=tmp_path, cache=plan_cache)
    assert done.returncode == 0, done.stderr
    assert "nothing has to be left out" in done.stderr
    assert ("its output varies" in done.stderr) == (mode == "random")
    assert not any(tmp_path.iterdir())


def test_every_run_gets_the_same_input(tmp_path: Path, plan_cache: Path) -> None:
    done = callscope(
        "record", "--bisect", "bash", "-c", "read a; [ $a = x ]", cwd=tmp_path, cache=plan_cache, stdin="x\n"
    )
    assert "untraced: exit status 0" in done.stderr
    assert "nothing has to be left out" in done.stderr


def test_program_that_differs_by_itself_is_refused(tmp_path: Path, plan_cache: Path) -> None:
    flag = tmp_path / "flag"
    command = ["bash", "-c", f"if [ -e {flag} ]; then exit 1; fi; touch {flag}"]
    done = callscope("record", "--bisect", *command, cwd=tmp_path, cache=plan_cache)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "differently from run to run" in done.stderr

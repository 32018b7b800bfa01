"""Arguments and results against gdb, which reads them by itself from the program without callscope."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program, have
from tests.builders.gdb_arguments import compare
from tests.builders.random_arguments import arguments_program

pytestmark = [pytest.mark.long, pytest.mark.skipif(not have("gdb", "gcc", "g++"), reason="gdb or gcc is not installed")]
PACKAGE = "better-sqlite3"
"""on npm; it carries the amalgamation"""
WHERE = "package/deps/sqlite3"


def sqlite_source(directory: Path) -> Path:
    """The directory of sqlite3.c; skips the test when it cannot be had."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    subprocess.run(["npm", "pack", PACKAGE], cwd=directory, capture_output=True, check=False, timeout=300)
    archives = list(directory.glob(f"{PACKAGE}*.tgz"))
    if not archives:
        pytest.skip(f"{PACKAGE} cannot be downloaded here")
    with tarfile.open(archives[0]) as files:
        files.extractall(directory, filter="data")
    if not (directory / WHERE / "sqlite3.c").is_file():
        pytest.skip(f"{archives[0].name} has no {WHERE}/sqlite3.c")
    return directory / WHERE


@pytest.mark.parametrize("level", ["-O1", "-O2"])
def test_two_hundred_functions_of_sqlite(level: str, tmp_path: Path, plan_cache: Path) -> None:
    source = sqlite_source(tmp_path)
    flags = [level, "-g", "-no-pie", f"-I{source}", "-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION", "-lm"]
    sources = [TARGETS / "sqlite_driver.c", source / "sqlite3.c"]
    program = compile_program(sources, tmp_path / "sqlite", flags)
    found = compare([program], tmp_path, plan_cache)
    assert found.wrong == 0, "\n".join(found.details)
    assert len(found.functions) >= 200
    assert found.values >= 1000
    assert found.missing <= found.values // 50


@pytest.mark.parametrize("is_cpp", [False, True], ids=["c", "cpp"])
@pytest.mark.parametrize("level", ["-O1", "-O2"])
def test_a_random_program(level: str, is_cpp: bool, tmp_path: Path, plan_cache: Path) -> None:
    source = tmp_path / ("program.cpp" if is_cpp else "program.c")
    source.write_text(arguments_program(11, is_cpp).source)
    program = compile_program([source], tmp_path / "program", [level, "-g", "-w", "-no-pie"])
    found = compare([program, tmp_path / "log"], tmp_path, plan_cache, functions=["f[0-9]*", "*::f[0-9]*"])
    assert found.wrong == 0, "\n".join(found.details)
    assert len(found.functions) >= 35
    assert found.values >= 300

"""The ways to build with callscope: CMake (CallTrace's methods and find_package) and pkg-config."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.builders.compilers import have
from tests.builders.tracing import callscope, run_plain, tool_environment

SOURCE = """
#include <stdio.h>
#ifdef WITH_API
#include <callscope.h>
#endif
static inline __attribute__((always_inline)) int simple_return(void) { return 42; }
int main(void) {
#ifdef WITH_API
    callscope_marker("hello");
#endif
    printf("%d\\n", simple_return());
    return 0;
}
"""
HEAD = "cmake_minimum_required(VERSION 3.13)\nproject(app C)\n"
FLAGS = "-finstrument-functions -rdynamic -g"
TARGET = "add_executable(app app.c)\n"
OPTIONS = "-finstrument-functions -rdynamic -g"
METHODS = {
    "command line": (
        TARGET,
        [f"-DCMAKE_C_FLAGS={FLAGS}", f"-DCMAKE_CXX_FLAGS={FLAGS}", "-DCMAKE_EXE_LINKER_FLAGS=-rdynamic"],
    ),
    "target": (
        TARGET + f"target_compile_options(app PRIVATE {OPTIONS})\ntarget_link_options(app PRIVATE -rdynamic)\n",
        [],
    ),
    "all targets": (f"add_compile_options({OPTIONS})\nadd_link_options(-rdynamic)\n" + TARGET, []),
    "toolchain": (TARGET, ["-DCMAKE_TOOLCHAIN_FILE=toolchain.cmake"]),
    "find_package": ("find_package(callscope REQUIRED COMPONENTS instrument)\n" + TARGET, []),
    "find_package target": (
        "find_package(callscope 0.1 REQUIRED)\n" + TARGET + "target_link_libraries(app PRIVATE callscope::instrument)\n"
        "target_compile_definitions(app PRIVATE WITH_API)\n",
        [],
    ),
}
TOOLCHAIN = f"""
set(CMAKE_C_FLAGS_INIT "{FLAGS}")
set(CMAKE_CXX_FLAGS_INIT "{FLAGS}")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-rdynamic")
"""


def traced(program: Path, cache: Path) -> list[str]:
    """The functions of the program's JSON, in order."""
    library = Path(callscope(["lib-path"], cache).output.strip()) / "libcalltrace.so"
    output = program.with_suffix(".json")
    variables = {"LD_PRELOAD": str(library), "CALLTRACE_OUTPUT": str(output)}
    done = run_plain([program], env=tool_environment(cache) | variables)
    assert (done.output, done.status) == ("42\n", 0), done.errors
    tree = json.loads(output.read_text())["threads"][0]["call_tree"]
    return [tree["function"], *(child["function"] for child in tree["children"])]


@pytest.mark.skipif(not have("cmake", "make"), reason="cmake is not installed")
@pytest.mark.parametrize("method", METHODS)
def test_cmake(method: str, tmp_path: Path, plan_cache: Path) -> None:
    text, options = METHODS[method]
    (tmp_path / "app.c").write_text(SOURCE)
    (tmp_path / "CMakeLists.txt").write_text(HEAD + text)
    (tmp_path / "toolchain.cmake").write_text(TOOLCHAIN)
    prefix = callscope(["cmake-path"], plan_cache).output.strip()
    for words in (
        ["cmake", "-S", ".", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}", *options],
        ["cmake", "--build", "build"],
    ):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert traced(tmp_path / "build/app", plan_cache) == ["main", "simple_return"]


@pytest.mark.skipif(not have("pkg-config", "gcc"), reason="pkg-config is not installed")
def test_pkg_config(tmp_path: Path, plan_cache: Path) -> None:
    (tmp_path / "app.c").write_text(SOURCE)
    directory = Path(callscope(["cmake-path"], plan_cache).output.strip()).parent / "pkgconfig"
    environment = os.environ | {"PKG_CONFIG_PATH": str(directory)}
    words = ["pkg-config", "--cflags", "--libs", "callscope-instrument"]
    flags = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["gcc", "-DWITH_API", "app.c", "-o", "app", *flags], cwd=tmp_path, check=True)
    assert traced(tmp_path / "app", plan_cache) == ["main", "simple_return"]

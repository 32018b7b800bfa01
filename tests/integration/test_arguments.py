"""`record --args`: random programs log what their functions are given and give back; the trace must say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.argument_truth import compare_arguments
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.random_arguments import CALLS, arguments_program
from tests.builders.tracing import callscope, run_plain, run_traced

SETTINGS = {"args": True, "functions": ["f[0-9]*", "*::f[0-9]*"]}
LEVELS = ("-O0", "-O1", "-O2", "-O3")
SAMPLE = [
    (1, "gcc", "-O0"),
    (2, "gcc", "-O2"),
    (3, "gcc", "-O3"),
    (4, "zig", "-O0"),
    (5, "zig", "-O2"),
    (7, "mingw", "-O2"),
]


def judge(
    seed: int,
    compiler: str,
    level: str,
    is_cpp: bool,
    directory: Path,
    cache: Path,
    note: Callable[[str, object], None],
    **more: object,
) -> None:
    program = arguments_program(seed, is_cpp)
    source = directory / ("arguments.cpp" if is_cpp else "arguments.c")
    source.write_text(program.source)
    flags = [level, "-g", "-w", f"-I{TARGETS}"]
    if compiler == "mingw":
        flags.append("-D__USE_MINGW_ANSI_STDIO=1")  # for %La
    name = "arguments.exe" if compiler == "mingw" else "arguments"
    binary = compile_program([source], directory / name, flags, compiler)
    log, trace = directory / "log", directory / "trace"
    outcome = run_traced([binary, log], trace, cache, recording=SETTINGS | more)
    assert (outcome.status, outcome.output) == (0, ""), outcome.errors
    found = compare_arguments(log, trace, program.functions)
    note("arguments", [found.calls, found.wrong])
    assert found.calls >= CALLS
    assert (found.missing, found.wrong) == (0, 0), f"{found.by_function}\n" + "\n".join(found.details)


@pytest.mark.parametrize("is_cpp", [False, True], ids=["c", "cpp"])
@pytest.mark.parametrize(("seed", "compiler", "level"), SAMPLE)
def test_every_value_is_true(
    seed: int, compiler: str, level: str, is_cpp: bool, tmp_path: Path, plan_cache: Path,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    judge(seed, compiler, level, is_cpp, tmp_path, plan_cache, record_property)


@pytest.mark.parametrize(
    "more",
    [{"clock": "none"}, {"keep_last": 64 << 20}, {"max_depth": 3}, {"calls": "on"}],
    ids=lambda more: next(iter(more)),
)
def test_values_are_true_whatever_else_is_recorded(
    more: dict[str, object], tmp_path: Path, plan_cache: Path, record_property: Callable[[str, object], None]
) -> None:
    judge(6, "gcc", "-O2", True, tmp_path, plan_cache, record_property, **more)


@pytest.mark.long
@pytest.mark.parametrize("is_cpp", [False, True], ids=["c", "cpp"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", ["gcc", "zig", "mingw"])
@pytest.mark.parametrize("seed", range(100, 105))
def test_matrix(
    seed: int, compiler: str, level: str, is_cpp: bool, tmp_path: Path, plan_cache: Path,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    judge(seed, compiler, level, is_cpp, tmp_path, plan_cache, record_property)


def test_prototypes_registers_and_json(tmp_path: Path, plan_cache: Path) -> None:
    source = tmp_path / "plain.c"
    source.write_text(
        "#include <stdio.h>\n#define ALONE __attribute__((noinline, noclone))\n"
        "ALONE double scale(double by, const char *what, int times) {\n"
        '    printf("%s %d\\n", what, times);\n    return by * times;\n}\n'
        'ALONE long other(long a, long b) {\n    return printf("%ld\\n", a + b);\n}\n'
        'int main(void) {\n    return (int)scale(1.5, "four", 4) + (int)other(7, 8);\n}\n'
    )
    program = compile_program([source], tmp_path / "plain", ["-O2"])
    header = tmp_path / "plain.h"
    header.write_text("/* declared */\n#include <x.h>\ndouble scale(double by, const char *what, int times);\n")
    settings = {"raw_args": True, "prototypes": str(header)}
    plain = run_plain([program])
    outcome = run_traced([program], tmp_path / "trace", plan_cache, recording=settings)
    assert (outcome.output, outcome.status) == (plain.output, plain.status)
    shown = callscope(["tree", tmp_path / "trace"], plan_cache).output
    assert 'scale(by=1.5, what="four", times=4) = 6.0;' in shown
    assert "other(rdi=0x7, rsi=0x8, " in shown
    lines = callscope(["calls", tmp_path / "trace", "--format", "json"], plan_cache).output.splitlines()
    (scale,) = [row for row in map(json.loads, lines) if row["function"] == "scale"]
    assert [(argument["name"], argument["value"]) for argument in scale["arguments"]] == [
        ("by", 1.5), ("what", "four"), ("times", 4),
    ]  # fmt: skip
    assert scale["result"]["value"] == 6.0
    exported = tmp_path / "out"
    for form, text in (
        ("chrome", '"args": {"arguments": "by=1.5, what=\\"four\\", times=4"}'),
        ("x64trace", 'enter plain!scale(by=1.5, what="four", times=4)'),
    ):
        done = callscope(["export", tmp_path / "trace", "--to", form, "-o", exported], plan_cache)
        assert done.status == 0, done.errors
        assert text in exported.read_bytes().decode("utf-8", "replace")
        exported.unlink()


@pytest.mark.parametrize("compiler", ["gcc", "mingw"])
def test_unsigned_characters_by_another_name(compiler: str, tmp_path: Path, plan_cache: Path) -> None:
    source = tmp_path / "bytes.c"
    source.write_text(
        "#include <stdint.h>\n#include <uchar.h>\n"
        "__attribute__((noinline, noclone)) uint8_t swap(uint8_t a, char16_t b, signed char c) {\n"
        '    __asm__ volatile("" : : "r"((int)b), "r"((int)c));\n    return (uint8_t)(a ^ 0x7f);\n}\n'
        "int main(void) {\n    return swap(200, 0xfff0, -5) - swap('A', 9, 5) - 121;\n}\n"
    )
    name = "bytes.exe" if compiler == "mingw" else "bytes"
    program = compile_program([source], tmp_path / name, ["-O2", "-g"], compiler)
    outcome = run_traced([program], tmp_path / "trace", plan_cache, recording={"args": True})
    assert outcome.status == 0, outcome.errors
    shown = callscope(["tree", tmp_path / "trace"], plan_cache).output
    assert "swap(a=200, b=65520, c=-5) = 183;" in shown
    assert "swap(a='A', b=9, c=5) = '>';" in shown


def test_libraries_of_the_system_by_name(tmp_path: Path, plan_cache: Path) -> None:
    outcome = run_traced(
        ["ls", "-d", "/"], tmp_path / "trace", plan_cache,
        recording={"args_of": ["getenv", "strcmp", "setlocale"], "modules": ["libc.so*"]},
    )  # fmt: skip
    assert outcome.output == "/\n"
    calls = callscope(["calls", tmp_path / "trace", "-f", "getenv"], plan_cache).output
    assert 'getenv(name="' in calls


@pytest.mark.parametrize("text", ["int f(", "no declarations at all\n", "\0\1\2", "int f(int (((((((((("])
def test_prototypes_that_are_none(text: str, tmp_path: Path, plan_cache: Path) -> None:
    header = tmp_path / "bad.h"
    header.write_text(text)
    found = callscope(["record", "--args", "--prototypes", header, "-o", tmp_path / "trace", "--", "true"], plan_cache)
    assert found.status == 1
    assert found.errors.count("\n") == 1
    assert "bad.h" in found.errors

"""Exceptions that nobody catches: their type and text, against what the program threw."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, run_plain, run_traced
from tests.integration.test_crash import crash_of

LONG = "x" * 256 + "..."
THROWN: dict[str, tuple[str, str | None] | None] = {
    "runtime": ("std::runtime_error", "no such table"),
    "long": ("std::logic_error", LONG),
    "derived": ("own::Error", "derived text"),
    "both": ("own::Both", "second base"),
    "plain": ("own::Plain", None),
    "memory": ("std::bad_alloc", None),
    "system": ("system_error", "opening: No such file or directory"),
    "number": ("int", "42"),
    "text": ("char const*", "a literal"),
    "string": ("basic_string", "short"),
    "noexcept": ("std::runtime_error", "broken promise"),
    "nested": ("std::logic_error", "inner"),
    "thread": ("std::runtime_error", "on a thread"),
    "again": ("own::Error", "thrown again"),
    "pointer": ("own::Error", "by pointer"),
    "handler": ("own::Error", "own handler"),
    "fault": ("own::Error", "while handled"),
    "terminate": None,
    "past": None,
    "abort": None,
}
BUILDS = {
    "gcc": ("gcc", ["-O2", "-g"]),
    "gcc-O0": ("gcc", ["-O0", "-g"]),
    "static": ("gcc", ["-O2", "-s", "-static-libstdc++", "-static-libgcc"]),
    "zig": ("zig", ["-O2"]),
}
FEW = [
    ("gcc", "both"), ("gcc", "nested"), ("gcc", "past"), ("gcc", "fault"), ("gcc", "noexcept"), ("static", "derived"),
    ("zig", "system"), ("zig", "thread"), ("gcc-O0", "abort"),
]  # fmt: skip
ALL = [(build, kind) for build in BUILDS for kind in THROWN if (build, kind) not in FEW]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """build -> the program."""
    directory = tmp_path_factory.mktemp("terminate")

    def built(build: str) -> Path:
        compiler, flags = BUILDS[build]
        return compile_program([TARGETS / "terminate.cpp"], directory / build, [*flags, "-pthread"], compiler)

    return built


def check(path: Path, kind: str, directory: Path, cache: Path) -> None:
    plain, traced = run_plain([path, kind]), run_traced([path, kind], directory / "t", cache)
    assert plain.status < 0
    assert (traced.output, traced.status) == (plain.output, 128 - plain.status)
    crash = crash_of(directory / "t", cache)
    thrown, found = THROWN[kind], crash["exception"]
    text = callscope(["crash", directory / "t"], cache).output
    if thrown is None:
        assert found is None
        return
    name, what = thrown
    assert found["what"] == what
    assert found["type"] == name or (kind in ("system", "string") and name in found["type"])
    if path.name != "static":
        assert crash["uncaught_exception"] == (kind != "fault")
    if kind == "derived" and path.name != "static":
        assert "own::Error was not caught: derived text\n" in text


@pytest.mark.parametrize(("build", "kind"), FEW)
def test_the_exception_is_named(
    build: str, kind: str, program: Callable[[str], Path], tmp_path: Path, plan_cache: Path
) -> None:
    check(program(build), kind, tmp_path, plan_cache)


@pytest.mark.long
@pytest.mark.parametrize(("build", "kind"), ALL)
def test_every_exception_is_named(
    build: str, kind: str, program: Callable[[str], Path], tmp_path: Path, plan_cache: Path
) -> None:
    check(program(build), kind, tmp_path, plan_cache)


def test_the_exception_of_a_library_loaded_late(tmp_path: Path, plan_cache: Path) -> None:
    source = tmp_path / "late.cpp"
    source.write_text('#include <stdexcept>\nextern "C" void go() { throw std::range_error("from a plugin"); }\n')
    library = compile_program([source], tmp_path / "late.so", ["-shared", "-fPIC"])
    caller = tmp_path / "caller.c"
    caller.write_text(
        "#include <dlfcn.h>\nint main(int count, char **names) {\n    (void)count;\n"
        '    ((void (*)(void))dlsym(dlopen(names[1], RTLD_NOW), "go"))();\n}\n'
    )
    program = compile_program([caller], tmp_path / "caller", ["-ldl"])
    run_traced([program, library], tmp_path / "t", plan_cache)
    assert crash_of(tmp_path / "t", plan_cache)["exception"] == {"type": "std::range_error", "what": "from a plugin"}

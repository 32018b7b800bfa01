"""Which modules and functions a recording traces."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from callscope.errors import UsageError
from callscope.globs import module_matches, without_parameters
from callscope.recording.options import RecordOptions, parse_size
from callscope.recording.rules import Functions, Rules

GIT = "/usr/bin/git"
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
NAMES = ["main", "cmd_log", "cmd_add", "ns::Tree::walk(int, char const*) const", None, "cmd_add.cold"]
FUNCTIONS = Functions(
    rvas=np.array([0x1000, 0x1100, 0x1200, 0x1300, 0x1400, 0x1500], np.uint32),
    sizes=np.array([0x100, 0x80, 0x10, 0x10, 0x10, 0x10], np.uint32),
    owners=np.array([0, 1, 2, 3, 4, 2], np.uint32),
    base=0x400000,
    names=lambda: NAMES,
)


def rules(
    modules: Sequence[str] = (), functions: Sequence[str] = (), excludes: Sequence[str] = (), files: Sequence[Path] = ()
) -> Rules:
    return Rules.of(
        RecordOptions(
            ("git",),
            modules=tuple(modules),
            functions=tuple(functions),
            excludes=tuple(excludes),
            exclude_files=tuple(files),
        )
    )


def chosen(rules: Rules, path: str = GIT, is_main: bool = True) -> list[int] | None:
    found = rules.choose(path, is_main, FUNCTIONS)
    return None if found is None else np.flatnonzero(found).tolist()


def test_functions_by_their_entry_in_the_exception_directory() -> None:
    functions = replace(FUNCTIONS, entries=lambda: [int(FUNCTIONS.rvas[2]) + 1, int(FUNCTIONS.rvas[0])])
    every = set(range(len(FUNCTIONS.rvas)))
    for ordinal, excluded in ((0, {2, 5}), (1, {0})):  # 5 is a part of 2
        found = rules(excludes=[f"pdata:{ordinal}"]).choose(GIT, True, functions)
        assert found is not None
        assert every - set(np.flatnonzero(found).tolist()) == excluded
    missing = rules(excludes=["pdata:2", "libc*!pdata:0"])
    found = missing.choose(GIT, True, functions)
    assert found is not None and found.all()
    assert missing.unmatched() == ["--exclude pdata:2", "--exclude libc*!pdata:0"]


def test_the_program_itself_is_the_default() -> None:
    assert rules().wants_module(GIT, True)
    assert not rules().wants_module(LIBC, False)
    assert chosen(rules()) is None


@pytest.mark.parametrize(
    ("globs", "main", "libc"),
    [
        (["all"], True, True),
        (["main"], True, False),
        (["libc.so.6"], False, True),
        (["libc*"], False, True),
        (["/lib/*"], False, True),
        (["git", "libc.so*"], True, True),
    ],
)
def test_module_rules(globs: list[str], main: bool, libc: bool) -> None:
    assert rules(globs).wants_module(GIT, True) is main
    assert rules(globs).wants_module(LIBC, False) is libc


def test_a_module_matches_without_its_version() -> None:
    assert module_matches("libstdc++.so.6", "/usr/lib/libstdc++.so.6.0.30")
    assert module_matches("libz.so", "/usr/lib/libz.so.1")
    assert not module_matches("libz.so", "/usr/lib/libz.sofa")
    assert not module_matches("libz", "/usr/lib/libz.so.1")


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (["cmd_*"], [1, 2, 5]),
        (["ns::Tree::walk"], [3]),
        (["ns::Tree::walk(int*) const"], [3]),
        (["git+0x1400"], [4]),
        (["git+0x14*"], [4]),
        (["0x1050"], [0]),
        (["0x401108"], [1]),
        (["git!main", "libc.so.6!main"], [0]),
        (["libc.so.6!main"], []),
        (["0xffffffffffffffff"], []),
        (["MAIN"], []),
    ],
)
def test_function_rules(globs: list[str], expected: list[int]) -> None:
    assert chosen(rules(functions=globs)) == expected


def test_exclude_beats_include_whatever_the_order() -> None:
    assert chosen(rules(functions=["cmd_*"], excludes=["cmd_add"])) == [1]
    assert chosen(rules(excludes=["cmd_*", "0x1000", "git+0x1400"])) == [3]
    assert chosen(rules(excludes=["libc.so.6!*"])) is None


def test_a_part_follows_its_owner() -> None:
    assert chosen(rules(functions=["cmd_add"])) == [2, 5]
    assert chosen(rules(excludes=["cmd_add"])) == [0, 1, 3, 4]


def test_a_function_rule_brings_its_module_in() -> None:
    named = rules(functions=["libc.so.6!main"])
    assert named.wants_module(LIBC, False)
    assert not named.wants_module(GIT, True)  # nothing could be chosen there
    assert chosen(named, LIBC, False) == [0]
    assert not rules(functions=["malloc"]).wants_module(LIBC, False)


def test_names_are_not_asked_for_without_need() -> None:
    def fail() -> Sequence[str | None]:
        raise AssertionError("names were read")

    functions = Functions(FUNCTIONS.rvas, FUNCTIONS.sizes, FUNCTIONS.owners, 0, fail)
    found = rules(excludes=["0x1000"]).choose(GIT, True, functions)
    assert found is not None and np.flatnonzero(found).tolist() == [1, 2, 3, 4, 5]


def test_rules_that_matched_nothing_are_named() -> None:
    some = rules(["git", "libnone*"], ["cmd_*", "nothing"], ["0x99999"])
    some.wants_module(GIT, True)
    some.choose(GIT, True, FUNCTIONS)
    assert some.unmatched() == ["--module libnone*", "--function nothing", "--exclude 0x99999"]


def test_exclude_files(tmp_path: Path) -> None:
    path = tmp_path / "excludes"
    path.write_text("# noise\n\n  cmd_*  \nlibc.so.6!malloc\n")
    assert chosen(rules(files=[path])) == [0, 3, 4]
    with pytest.raises(UsageError, match="cannot read the exclude file"):
        rules(files=[tmp_path / "missing"])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text"):
        rules(files=[path])


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("f", "f"),
        ("f(int)", "f"),
        ("f(void (*)(int)) const", "f"),
        ("A::operator()(int)", "A::operator()"),
        ("A::operator()", "A::operator()"),
        ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
        ("(anonymous namespace)", "(anonymous namespace)"),
        ("f(int) [clone .part.0]", "f"),
        ("drop_in_place<fn()>", "drop_in_place<fn()>"),
        (")", ")"),
        ("f)", "f)"),
    ],
)
def test_names_without_parameters(name: str, bare: str) -> None:
    assert without_parameters(name) == bare


def test_operators_are_no_module_separators() -> None:
    assert rules(functions=["ns::operator!="]).functions[0].glob.module is None
    assert rules(functions=["lib.so!ns::operator!="]).functions[0].glob.module == "lib.so"


@pytest.mark.parametrize("text", ["", "!", "!f", "mod!", "  "])
def test_nonsense_rules_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no function rule"):
        rules(functions=[text])


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("64M", 64 << 20), ("1.5 GiB", 3 << 29), ("8kb", 8192), ("2T", 2 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1X", "1 2", "1e9", "0x10", "9" * 400])
def test_nonsense_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    "arguments",
    [
        {"command": ()},
        {"command": ("",)},
        {"command": ("a\0b",)},
        {"max_depth": -1},
        {"max_depth": 1 << 32},
        {"clock": "sundial"},
        {"keep_last": 4096},
    ],
)
def test_impossible_options_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        RecordOptions(**({"command": ("git",)} | arguments))  # type: ignore[arg-type]

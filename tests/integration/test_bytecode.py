"""`callscope bytecode`: the form of what it writes, and what the program sees of it."""

import json
from pathlib import Path

import pytest

from callscope.bytecode.interpreters import Version
from tests.builders.pythons import bytecode, compiled, each_version, interpreter_of, program

MODULE_27 = """\
<module>> 0 LOAD_CONST ({})
<module>> 3 MAKE_FUNCTION (0)
<module>> 6 STORE_NAME ({})
<module>> 9 LOAD_NAME ({})
<module>> 12 LOAD_CONST ({})
<module>> 15 CALL_FUNCTION (1)
"""
CALL_27 = """\
recur_factorial> 0 LOAD_FAST ({n})
recur_factorial> 3 LOAD_CONST ({one})
recur_factorial> 6 COMPARE_OP ({le})
recur_factorial> 9 POP_JUMP_IF_FALSE (16)
"""
DEEPER_27 = """\
recur_factorial> 16 LOAD_FAST ({n})
recur_factorial> 19 LOAD_GLOBAL ({name})
recur_factorial> 22 LOAD_FAST ({n})
recur_factorial> 25 LOAD_CONST ({one})
recur_factorial> 28 BINARY_SUBTRACT
recur_factorial> 29 CALL_FUNCTION (1)
"""
LEAF_27 = """\
recur_factorial> 12 LOAD_FAST ({n})
recur_factorial> 15 RETURN_VALUE
"""
BACK_27 = """\
recur_factorial> 32 BINARY_MULTIPLY
recur_factorial> 33 RETURN_VALUE
"""
END_27 = """\
<module>> 18 PRINT_ITEM
<module>> 19 PRINT_NEWLINE
<module>> 20 LOAD_CONST (2)
<module>> 23 RETURN_VALUE
"""


def factorial_27(plain: bool) -> str:
    """What CPython 2.7 executes for the factorial of 3, read off its disassembly by hand."""
    facts = {"n": "0", "one": "1", "le": "1", "name": "0"} if plain else {"n": "n", "one": "1", "le": "<="}
    call, deeper, leaf = (part.format(name="recur_factorial", **facts) if not plain else part.format(**facts)
                          for part in (CALL_27, DEEPER_27, LEAF_27))  # fmt: skip
    return call + deeper + call + deeper + call + leaf + BACK_27 * 2


def test_first_example_of_the_ancestor(tmp_path: Path) -> None:
    compiled((2, 7), program(tmp_path, "factorial"))
    done = bytecode(tmp_path, "factorial.pyc", "trace.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")
    trace = (tmp_path / "trace.txt").read_text()
    assert trace == MODULE_27.format(0, 0, 0, 1) + factorial_27(True) + END_27
    assert (tmp_path / "trace.txt").stat().st_mode & 0o777 == 0o600


def test_second_example_of_the_ancestor(tmp_path: Path) -> None:
    compiled((2, 7), program(tmp_path, "factorial"))
    done = bytecode(tmp_path, "-t=only", "-n=recur_factorial", "-r", "factorial.pyc", "trace.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")
    assert (tmp_path / "trace.txt").read_text() == factorial_27(False)


@each_version
def test_source_and_compiled_are_the_same(version: Version, tmp_path: Path) -> None:
    interpreter = interpreter_of(version)
    compiled(version, program(tmp_path, "factorial"))
    for name, options in (("factorial.pyc", ()), ("factorial.py", ("--python", interpreter.path))):
        done = bytecode(tmp_path, *options, name, f"{name}.txt")
        assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")
    text = (tmp_path / "factorial.pyc.txt").read_text()
    assert text == (tmp_path / "factorial.py.txt").read_text()
    assert text.count("recur_factorial> 0 ") == 3
    assert text.splitlines()[-1].split()[2].startswith("RETURN_")


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_json_has_lines_and_meanings(python: str, tmp_path: Path) -> None:
    interpreter_of((3, int(python[2:])))
    done = bytecode(
        tmp_path, "--python", python, "--format", "json", "-r", program(tmp_path, "factorial"), "trace.json"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "trace.json").read_text().splitlines()]
    compares = [row for row in rows if row["name"] == "COMPARE_OP"]
    assert [(row["code"], row["line"], row["thread"]) for row in compares] == [("recur_factorial", 2, 1)] * 3
    assert {row["meaning"] for row in compares} <= {"<=", "bool(<=)"}
    assert all(row["file"] == str(tmp_path / "factorial.py") for row in rows)

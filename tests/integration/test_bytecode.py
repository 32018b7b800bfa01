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


def lines_of(directory: Path, *arguments: object) -> list[str]:
    done = bytecode(directory, "--force", *arguments, "factorial.py", "trace.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "6\n", "")
    return (directory / "trace.txt").read_text().splitlines()


def test_filters(tmp_path: Path) -> None:
    program(tmp_path, "factorial")
    everything = lines_of(tmp_path)
    own = [line for line in everything if line.startswith("recur_factorial>")]
    assert 20 < len(own) < len(everything)
    assert lines_of(tmp_path, "--limit", "7") == everything[:7]
    assert lines_of(tmp_path, "-t", "only", "-n", "recur_*") == own
    assert lines_of(tmp_path, "--file", "*/factorial.py") == everything
    assert lines_of(tmp_path, "--file", "*/nothing.py") == []
    first, last = everything.index(own[0]), len(everything) - everything[::-1].index(own[-1])
    assert lines_of(tmp_path, "--lines", "2-4") == [line for line in own if "RESUME" not in line]
    assert lines_of(tmp_path, "--from", "recur_factorial") == everything[first:]
    assert lines_of(tmp_path, "--to", "recur_factorial") == everything[:first]
    assert lines_of(tmp_path, "--from", "recur_factorial", "--to", "<module>") == everything[first:last]
    assert lines_of(tmp_path, "--lines", "1-4", "--limit", "3") == everything[1:4]  # RESUME is of line 0


def test_marks_of_lines(tmp_path: Path) -> None:
    program(tmp_path, "factorial")
    own = [line for line in lines_of(tmp_path) if line.startswith("recur_factorial>")]
    found = lines_of(tmp_path, "--from", "2", "--to", "4")
    first_comparison = own[1 : next(i for i, line in enumerate(own) if "POP_JUMP" in line) + 1]
    assert found[: len(first_comparison)] == first_comparison
    assert sum("COMPARE_OP" in line for line in found) == 3
    assert not any("BINARY_OP" in line for line in found)


def test_other_files_are_recorded_on_request(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def help(x):\n    return x * 2\n")
    (tmp_path / "main.py").write_text("import helper\nprint(helper.help(3))\n")
    codes = {}
    for glob in ("*/main.py", "*/helper.py", "*"):
        done = bytecode(tmp_path, "--file", glob, "--force", "--format", "json", "main.py", "trace.json")
        assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
        rows = [json.loads(line) for line in (tmp_path / "trace.json").read_text().splitlines()]
        codes[glob] = {(Path(row["file"]).name, row["code"]) for row in rows}
    assert codes["*/main.py"] == {("main.py", "<module>")}
    assert codes["*/helper.py"] == {("helper.py", "<module>"), ("helper.py", "help")}
    assert codes["*"] > codes["*/main.py"] | codes["*/helper.py"]


@each_version
def test_modules_and_packages(version: Version, tmp_path: Path) -> None:
    python = interpreter_of(version).path
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package import helper\n")
    (package / "helper.py").write_text("def help(): return 1\nhelp()\n")
    (package / "__main__.py").write_text("import sys\nfrom package.helper import help\nprint(sys.argv[1:], help())\n")
    done = bytecode(tmp_path, "--python", python, "-m", "package", "module.txt", "-x", "y")
    shown = "(['-x', 'y'], 1)\n" if version < (3,) else "['-x', 'y'] 1\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")
    names = {line.split("> ")[0] for line in (tmp_path / "module.txt").read_text().splitlines()}
    assert names == {"<module>"}
    (package / "__main__.py").write_text("print('directory')\n")
    done = bytecode(tmp_path, "--python", python, "package", "directory.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "directory\n", "")
    assert (tmp_path / "directory.txt").read_text().startswith("<module>> 0 ")

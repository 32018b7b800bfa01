"""Programs that exit or raise, and files that are none: the right status, and one clear line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callscope.bytecode.interpreters import Version, magic_version
from tests.builders.pyc_file import MAGIC, header, pyc_27, text
from tests.builders.pythons import bytecode, compiled, each_version, interpreter_of, name_of, program
from tests.builders.tracing import tool_environment

ENDINGS = {
    "print('out')": 0,
    "import sys; sys.exit(7)": 7,
    "import sys; sys.exit('words')": 1,
    "raise ValueError('raised')": 1,
    "import os; os._exit(9)": 9,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": 128 + signal.SIGKILL,
    "import os, sys; sys.stdout.write('x'); sys.stdout.flush(); os.abort()": 128 + signal.SIGABRT,
}


def refused(directory: Path, *arguments: object, status: int = 1) -> str:
    """The one line of an error."""
    done = bytecode(directory, *arguments, "trace.txt")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("callscope: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (directory / "trace.txt").exists()
    return done.stderr


@pytest.mark.parametrize("version", [(2, 7), (3, 6), (3, 11), (3, 13)], ids=name_of)
def test_status_and_output_are_the_programs(version: Version, tmp_path: Path) -> None:
    interpreter = interpreter_of(version)
    for number, (source, status) in enumerate(ENDINGS.items()):
        path = tmp_path / f"program{number}.py"
        path.write_text(source + "\n")
        plain = subprocess.run([interpreter.path, path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        done = bytecode(tmp_path, "--python", interpreter.path, path, f"{number}.txt")
        assert done.returncode == status, source
        assert done.stdout + done.stderr == plain.stdout
        trace = (tmp_path / f"{number}.txt").read_text().splitlines()
        assert len(trace) > 2 and all(line.startswith("<module>> ") for line in trace)


WAITING = """\
import sys, time
def wait():
    rounds = 0
    while True:
        rounds += 1
        if rounds == 5:
            sys.stdout.write("ready\\n")
            sys.stdout.flush()
        time.sleep(0.01)
wait()
"""


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 13)], ids=name_of)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_leaves_its_trace(number: signal.Signals, version: Version, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, other signals to the recorder alone, which passes them on."""
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, "-m", "callscope", "bytecode", "--python", interpreter_of(version).path]
    with subprocess.Popen(
        [*command, "waiting.py", "trace.txt"], cwd=tmp_path, env=tool_environment(tmp_path), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        (os.killpg if number is signal.SIGINT else os.kill)(process.pid, number)
        status = process.wait(60)
    assert status == (1 if number is signal.SIGINT and version < (3, 8) else 128 + number)
    lines = (tmp_path / "trace.txt").read_text().splitlines()
    assert lines[-1].startswith("wait> ") and sum("wait> " in line for line in lines) > 30


PROBE = """\
import os, sys, traceback, threading
def lines():
    here = sys._getframe()
    try:
        raise ValueError
    except ValueError:
        tb = sys.exc_info()[2]
    return (here.f_lineno, tb.tb_lineno,

            here.f_back.f_lineno, here.f_back.f_back is None)
def later(found):
    found.append((threading.current_thread().name, lines()))
found = []
thread = threading.Thread(target=later, args=(found,), name="t")
thread.start()
thread.join()
print(sys.argv, sys.path, __file__, __name__, __package__, sorted(n for n in sys.modules if "callscope" in n or
      n == "sitecustomize"), lines(), found, sorted(k for k in os.environ if "CALL" in k or k == "PYTHONPATH"),
      sorted(globals()), os.environ.get("PYTHONPATH"), len(sys.modules), sys.getrecursionlimit(), sys.flags)
traceback.print_stack(file=sys.stdout)
[][1]
"""


@each_version
def test_the_program_sees_nothing(version: Version, tmp_path: Path) -> None:
    interpreter = interpreter_of(version)
    (tmp_path / "probe.py").write_text(PROBE)
    done = bytecode(tmp_path, "--python", interpreter.path, "probe.py", "trace.txt", "a b", "--force")
    command = [interpreter.path, "probe.py", "a b", "--force"]
    plain = subprocess.run(
        command,
        cwd=tmp_path,
        env=tool_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout + done.stderr == plain.stdout


def test_unreadable_and_missing_files(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path, "missing.py", status=2)
    (tmp_path / "program.py").write_text("")
    done = bytecode(tmp_path, "program.py", "missing/trace.txt")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    (tmp_path / "there.txt").write_text("kept")
    done = bytecode(tmp_path, "program.py", "there.txt")
    assert (done.returncode, (tmp_path / "there.txt").read_text()) == (2, "kept")
    assert "is no Python" in refused(tmp_path, "--python", "/bin/false", "program.py", status=2)
    assert "belong together" in refused(tmp_path, "-t", "only", "program.py", status=2)


def test_an_interpreter_without_site_is_named(tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o700)
    (tmp_path / "program.py").write_text("")
    assert "did not start the recorder" in refused(tmp_path, "--python", wrapper, "program.py")


@pytest.mark.parametrize("version", [(2, 6), (3, 5), (3, 14), (3, 15)], ids=name_of)
def test_foreign_files_name_their_version(version: Version, tmp_path: Path) -> None:
    if version == (3, 14):
        try:
            interpreter_of(version)
        except pytest.skip.Exception:
            pass
        else:
            pytest.skip("there is a CPython 3.14")
    (tmp_path / "foreign.pyc").write_bytes(header(version) + text("anything"))
    assert f"Python {name_of(version)}" in refused(tmp_path, "foreign.pyc")


def test_magic_numbers() -> None:
    for version in MAGIC:
        assert magic_version(header(version)) == version
    assert [magic_version(head) for head in (b"", b"\x16\r", b"\xff\xff\r\n", b"abcd", b"\0\0\r\n")] == [None] * 5


@each_version
def test_damaged_files(version: Version, tmp_path: Path) -> None:
    path = compiled(version, program(tmp_path, "factorial"))
    whole = path.read_bytes()
    for damaged in (
        whole[:12],
        whole[: len(whole) // 2],
        header(version) + b"i\1\0\0\0",
        header(version) + b"\xff" * 9,
    ):
        path.write_bytes(damaged)
        assert "factorial.pyc is damaged" in refused(tmp_path, "factorial.pyc")
    (tmp_path / "other.pyc").write_bytes(b"nothing of the kind")
    assert "not compiled by any known Python" in refused(tmp_path, "other.pyc")


def test_made_code_of_27_runs(tmp_path: Path) -> None:
    """LOAD_CONST 0, PRINT_ITEM, PRINT_NEWLINE, then a jump over EXTENDED_ARG, and one through it."""
    interpreter_of((2, 7))
    bytecode_27 = b"d\0\0GHn\6\0" + b"\x91\0\0d\0\0" + b"\x91\0\0d\0\0S"
    (tmp_path / "made.pyc").write_bytes(pyc_27(bytecode_27, text("hello")))
    done = bytecode(tmp_path, "-r", "made.pyc", "trace.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert (tmp_path / "trace.txt").read_text().splitlines() == [
        "<module>> 0 LOAD_CONST ('hello')", "<module>> 3 PRINT_ITEM", "<module>> 4 PRINT_NEWLINE",
        "<module>> 5 JUMP_FORWARD (14)", "<module>> 14 EXTENDED_ARG (0)", "<module>> 17 LOAD_CONST ('hello')",
        "<module>> 20 RETURN_VALUE",
    ]  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1 << 16), change=st.binary(min_size=1, max_size=4), cut=st.integers(0, 1 << 12))
def test_fuzzed_files(place: int, change: bytes, cut: int, tmp_path: Path) -> None:
    """Whatever the interpreter makes of them: a status, and no traceback of callscope's."""
    path = compiled((3, 11), program(tmp_path, "factorial"))
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : place + len(change)] = change
    path.write_bytes(bytes(content[: max(len(content) - cut % 64, 0)]))
    done = bytecode(tmp_path, "--force", "factorial.pyc", "trace.txt")
    assert 0 <= done.returncode < 256
    assert "callscope/" not in done.stderr.replace(str(tmp_path), "")

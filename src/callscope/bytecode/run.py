"""Runs a program in its interpreter with the recorder inside; what was recorded stays in a directory for `decode`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from callscope.bytecode.interpreters import (
    MAGIC_BYTES,
    Interpreter,
    find,
    find_version,
    header_bytes,
    magic_version,
)
from callscope.errors import RecordError, UsageError
from callscope.native import forward_signals, library_path, signals_held

LIBRARY_NAME = "libcallscope-bytecode.so"
TARGET = Path(__file__).parent / "target"
DIRECTORY_VARIABLE = "CALLSCOPE_BYTECODE"
PATH_VARIABLE = "PYTHONPATH"
LAST_WITH_VALUES = (3, 13)
INFERRED_VERSIONS = ((3, 12), (3, 13))
EVENTS, CODES = "events", "codes"


@dataclass(frozen=True)
class Program:
    """What to run: a file, or a module by name; its arguments; the interpreter asked for, if any."""

    name: str
    arguments: tuple[str, ...] = ()
    is_module: bool = False
    python: str | None = None


@dataclass(frozen=True)
class Choice:
    """What to record: names of code objects (globs), and files (globs; none: the program's own). limit: about how many
    instructions, 0 for all. values: the stack's, too. infer: record only what instructions can be inferred from; None:
    where that can be done.
    """

    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    limit: int = 0
    values: bool = False
    infer: bool | None = None


def choose_interpreter(program: Program) -> tuple[Interpreter, int]:
    """Who runs the program, and the bytes before the code of a .pyc; 0 for what is none.

    Raises UsageError or RecordError.
    """
    if program.is_module:
        return find(program.python), 0
    path = Path(program.name)
    try:
        if path.is_dir():
            return find(program.python), 0
        with path.open("rb") as file:
            head = file.read(MAGIC_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    version = magic_version(head)
    if version is None:
        if path.suffix in (".pyc", ".pyo"):
            raise RecordError(f"{path} is not compiled by any known Python: compile its source again")
        return find(program.python), 0
    interpreter = find(program.python) if program.python else find_version(version)
    if interpreter.version != version:
        needed, got = (".".join(map(str, one)) for one in (version, interpreter.version))
        raise RecordError(f"{path} is of Python {needed}, not {got}: leave --python out")
    return interpreter, header_bytes(version)


def run(program: Program, interpreter: Interpreter, header: int, choice: Choice, directory: Path) -> int:
    """Run to the end; the exit status, 128 + N for a signal. `directory` is private, and holds the recording then.

    Raises RecordError when the recorder cannot start, or the file's code is damaged.
    """
    if choice.values and interpreter.version > LAST_WITH_VALUES:
        raise UsageError("--values: the stacks of CPython 3.14 cannot be read; leave it out")
    _prepare(program, header, choice, _inference(choice, interpreter), directory)
    first = ["-m", program.name] if program.is_module else [program.name]
    environment = os.environ | {DIRECTORY_VARIABLE: str(directory), PATH_VARIABLE: _search_path(directory)}
    status = _wait([interpreter.path, *first, *program.arguments], environment)
    refused = directory / "refused"
    if refused.exists():
        kind, _, reason = refused.read_text(errors="replace").partition(" ")
        if kind == "pyc":
            raise RecordError(f"{program.name} is damaged: {reason}; compile its source again")
        raise RecordError(f"{interpreter.path} cannot be traced: {reason}")
    if (directory / EVENTS).stat().st_size == 0:
        raise RecordError(
            f"{interpreter.path} did not start the recorder: does it leave out `site` or {PATH_VARIABLE}?"
        )
    return status


def _search_path(directory: Path) -> str:
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get(PATH_VARIABLE)])])


def _inference(choice: Choice, interpreter: Interpreter) -> int:
    """0: each instruction; 1: infer if possible; 2: infer or refuse. Raises UsageError."""
    possible = interpreter.version in INFERRED_VERSIONS
    if choice.infer and choice.values:
        raise UsageError("--infer and --values exclude each other: values are read at each instruction; leave one out")
    if choice.infer and not possible:
        name = ".".join(map(str, interpreter.version))
        raise UsageError(
            f"--infer: instructions of CPython {name} cannot be inferred, but of 3.12 and 3.13; leave it out"
        )
    return 2 if choice.infer else int(choice.infer is None and possible and not choice.values)


def _prepare(program: Program, header: int, choice: Choice, infer: int, directory: Path) -> None:
    """The files that the recorder finds in its directory."""
    settings = {
        "library": str(library_path(LIBRARY_NAME)),
        "names": "\n".join(choice.names),
        "files": "\n".join(choice.files),
        "every_file": str(int("*" in choice.files)),
        "limit": str(choice.limit),
        "values": str(int(choice.values)),
        "infer": str(infer),
    }
    if PATH_VARIABLE in os.environ:
        settings["path"] = os.environ[PATH_VARIABLE]
    if header:
        settings |= {"pyc": str(Path(program.name).absolute()), "header": str(header)}
    fields = [text for pair in settings.items() for text in pair]
    (directory / "settings").write_bytes(os.fsencode("\0".join(fields)))
    shutil.copyfile(TARGET / "sitecustomize.py", directory / "sitecustomize.py")
    for name in (EVENTS, CODES):
        (directory / name).touch(0o600)


def _wait(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a program with our terminal; signals that would end us are for it."""
    with signals_held():
        try:
            process = subprocess.Popen(command, env=environment, close_fds=False)
        except OSError as error:
            raise RecordError(f"{command[0]} cannot be started: {error.strerror}") from None
        forward_signals(process.pid)
        status = process.wait()
    return status if status >= 0 else 128 - status

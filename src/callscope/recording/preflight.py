"""Looks at a program before it is started: can it be traced at all?

Every answer comes from the files, as the kernel would read them (execve(2), `binfmt_script`), so that a program that
cannot be traced is refused with a reason and a remedy, before anything runs.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from callscope.binary.elf import read_image
from callscope.binary.image import Image
from callscope.binary.pe import read_pe
from callscope.errors import ImageError, RecordError
from callscope.recording.unpacked import is_packed, is_windows_file

LONGEST_SHEBANG = 255
WINDOWS_SUFFIX = ".exe"
PYTHON_SUFFIXES = (".py", ".pyw")
MOST_INTERPRETERS = 5
"""The kernel follows a script to a script to ... this often."""


@dataclass(frozen=True)
class Target:
    """A program that can be traced.

    path: the file to execute: absolute, or as typed when that holds a slash. image: the program that will run: the
    file itself or, for a script, its interpreter; a Windows program runs through Wine. expected: images likely to run
    next, known from the script's first line (`#!/usr/bin/env python3`).
    """

    path: str
    image: Image
    expected: tuple[Path, ...] = ()


def check_program(command: tuple[str, ...], environment: Mapping[str, str] = os.environ) -> Target:
    """Find and check the program of `command`.

    Raises RecordError when it is not there or may not be run, ImageError when it is of a kind that cannot be traced.
    """
    path = find_program(command[0], environment)
    image, expected = path, None
    for _ in range(MOST_INTERPRETERS):
        check_file(image)
        if is_windows_file(image):
            return Target(path, check_windows_image(image))
        check_executable(image)
        words = read_shebang(image)
        if words is None:
            return Target(path, check_image(image), _expected(expected, environment))
        script, image, expected = image, words[0], words
        if not is_file(Path(image)):
            raise RecordError(
                f"{script} is a script for {image}, which does not exist: install it or mend the first line"
            )
    raise RecordError(f"{path} is a script for a script for a script, too deep for the kernel: name the program itself")


def with_python(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command, with python3 before a Python source file that the kernel would not run by itself."""
    path = Path(command[0])
    if path.suffix not in PYTHON_SUFFIXES or not is_file(path):
        return command
    if os.access(path, os.X_OK) and os.access(path, os.R_OK) and read_shebang(command[0]) is not None:
        return (str(path) if "/" in command[0] else f"./{path}", *command[1:])
    return ("python3", *command)


def find_program(name: str, environment: Mapping[str, str]) -> str:
    """Where the program `name` is, looked for as a shell does. Raises RecordError when it is nowhere."""
    if "/" in name:
        return name
    if name.lower().endswith(WINDOWS_SUFFIX) and is_file(Path(name)):
        return str(Path(name).absolute())  # as on Windows, where this directory comes first
    unfit = None
    for directory in environment.get("PATH", os.defpath).split(os.pathsep):
        candidate = Path(directory or ".").absolute() / name
        if is_file(candidate):
            if os.access(candidate, os.X_OK):
                return str(candidate)
            unfit = unfit or str(candidate)
    if unfit is not None:
        return unfit  # check_executable says what is wrong with it
    here = f"; the one in this directory is called ./{name}" if is_file(Path(name)) else ""
    raise RecordError(f"there is no program {name} on the PATH: check the name or give its path{here}")


def is_file(path: Path) -> bool:
    """Whether `path` is a file that can be looked at: no error for names too long or directories out of bounds."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def check_file(path: str) -> None:
    """Raise RecordError when `path` is no file that this user may read."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise RecordError(f"cannot look at {path}: {error.strerror}; check the path") from None
        if Path(path).is_symlink():
            raise RecordError(f"{path} is a symbolic link to nothing: name the program itself") from None
        raise RecordError(f"there is no program {path}: check the path") from None
    if stat.S_ISDIR(mode):
        raise RecordError(f"{path} is a directory: name a program in it")
    if not stat.S_ISREG(mode):
        raise RecordError(f"{path} is not a regular file: name a program")
    if not os.access(path, os.R_OK):
        raise RecordError(f"{path} cannot be read: make it readable, its code must be looked at to trace it")


def check_executable(path: str) -> None:
    """Raise RecordError when this user may not run the file `path`."""
    if not os.access(path, os.X_OK):
        raise RecordError(f"{path} is not executable: run chmod +x on it, or name its interpreter first")


def check_windows_image(path: str) -> Image:
    """A program for x64 Windows; ImageError when it is none."""
    image = read_pe(path)
    image.require_program()
    return image


def read_shebang(path: str) -> tuple[str, ...] | None:
    """The interpreter and at most one argument of a script's first line, or None when the file is no script."""
    with Path(path).open("rb") as file:
        line = file.read(LONGEST_SHEBANG + 1)
    if not line.startswith(b"#!"):
        return None
    words = line[2:].split(b"\n", 1)[0].split(b"\0", 1)[0].strip(b" \t").split(maxsplit=1)
    if not words:
        raise RecordError(f"{path} is a script that names no interpreter: name the interpreter first")
    return tuple(os.fsdecode(word.strip(b" \t")) for word in words)


def check_image(path: str) -> Image:
    """The ELF image of a program, refused with ImageError when no library can be preloaded into it."""
    with Path(path).open("rb") as file:
        start = file.read(LONGEST_SHEBANG)
    if start and b"\0" not in start and not start.startswith(b"\x7fELF"):
        raise ImageError(f"{path} is text without a #! line: name its interpreter first, as in record -- sh {path}")
    image = read_image(path)
    if image.interpreter is None and not is_packed(path):
        raise ImageError(f"{path} is statically linked: only programs that a dynamic loader starts can be traced")
    if image.interpreter is not None and not is_file(Path(image.interpreter)):
        raise ImageError(f"{path} needs the loader {image.interpreter}, which does not exist: install its C library")
    reason = runs_with_other_rights(path)
    if reason:
        raise ImageError(
            f"{path} {reason}, so the loader ignores preloaded libraries: run callscope as that user, or trace a copy"
        )
    return image


def runs_with_other_rights(path: str) -> str | None:
    """Why the loader will run the program in secure-execution mode (ld.so(8)) for this user, or None."""
    status = Path(path).stat()
    honoured = not os.statvfs(path).f_flag & os.ST_NOSUID
    if honoured and status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
        return "is setuid"
    if honoured and status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IXGRP and status.st_gid != os.getgid():
        return "is setgid"
    if honoured and os.getuid() != 0 and has_capabilities(path):
        return "has file capabilities"
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        return "would inherit callscope's own setuid rights"
    return None


def has_capabilities(path: str) -> bool:
    """Whether the file gives its process capabilities (capabilities(7))."""
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def _expected(shebang: tuple[str, ...] | None, environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The program that `#!/usr/bin/env NAME` leads to, when it can be found."""
    if shebang is None or len(shebang) < 2 or Path(shebang[0]).name != "env":
        return ()
    words = [word for word in shebang[1].split() if not word.startswith("-") and "=" not in word]
    try:
        return (Path(find_program(words[0], environment)),) if words else ()
    except RecordError:
        return ()

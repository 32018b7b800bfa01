"""Starts the program to be recorded and waits for it, without coming between it and its surroundings.

It inherits the terminal, the process group, every open descriptor and the working directory; its environment changes
only by what the agent needs. Signals sent to the recorder go to the program; those from the
terminal reach it anyway.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from callscope.errors import RecordError
from callscope.native import AGENT_NAME, PYTHON_NAME, library_path

SESSION_VARIABLE = "CALLSCOPE_SESSION"
RECORDER_VARIABLE = "CALLSCOPE_RECORDER"
FOLLOW_VARIABLE = "CALLSCOPE_FOLLOW"
PYTHON_RULES_VARIABLE = "CALLSCOPE_PYTHON_RULES"
PRELOAD_VARIABLE = "LD_PRELOAD"
_PRELOAD_SEPARATORS = " :"


def preload_path(name: str, spare: Path) -> Path:
    """A native library by a path that LD_PRELOAD can hold, without spaces or colons: a link in `spare` if need be."""
    path = library_path(name)
    if not any(separator in str(path) for separator in _PRELOAD_SEPARATORS):
        return path
    link = spare / name
    if any(separator in str(link) for separator in _PRELOAD_SEPARATORS):
        raise RecordError(f"neither {path} nor {link} can be preloaded: set TMPDIR to a path without spaces or colons")
    if not link.is_symlink():
        link.symlink_to(path)
    return link


def preloaded(spare: Path, python: bool) -> list[Path]:
    """What the program's loader is to load first. `python`: with the recorder of Python calls."""
    return [preload_path(name, spare) for name in (AGENT_NAME, PYTHON_NAME)[: 1 + python]]


def traced_environment(
    environment: Mapping[str, str],
    libraries: Sequence[Path],
    session: Path,
    recorder: Path,
    follow: bool,
    python_rules: str = "",
) -> dict[str, str]:
    """The environment of the program: `environment` and what the agent reads.

    The user's own preloaded libraries stay, after `libraries`; those of an outer recording go.
    """
    others = environment.get(PRELOAD_VARIABLE, "").replace(":", " ").split()
    preload = [*map(str, libraries), *(path for path in others if Path(path).name not in (AGENT_NAME, PYTHON_NAME))]
    traced = dict(environment) | {
        PRELOAD_VARIABLE: ":".join(preload),
        SESSION_VARIABLE: str(session),
        RECORDER_VARIABLE: str(recorder),
    }
    for name in (FOLLOW_VARIABLE, PYTHON_RULES_VARIABLE):
        traced.pop(name, None)
    if python_rules:
        traced[PYTHON_RULES_VARIABLE] = python_rules
    return traced if follow else traced | {FOLLOW_VARIABLE: "0"}


def start_program(path: str, command: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Start the program; its process id. Raises RecordError when the system refuses."""
    # Python ignores these two for itself; a program expects them as they are by default.
    defaults = [number for number in (signal.SIGPIPE, signal.SIGXFSZ) if signal.getsignal(number) == signal.SIG_IGN]
    try:
        return os.posix_spawn(path, command, environment, setsigdef=defaults)
    except OSError as error:
        remedy = "shorten its arguments or environment" if error.errno == errno.E2BIG else "check that it runs untraced"
        raise RecordError(f"cannot start {path}: {error.strerror}; {remedy}") from None


def wait_program(pid: int) -> int:
    """Wait until the program ends; its exit status, or 128 + N when signal N ended it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code

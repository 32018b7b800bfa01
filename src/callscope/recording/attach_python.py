"""Calls of Python functions in a program that runs already: the library that records them, loaded beside the agent,
begins and ends on a thread of its own that waits for the interpreter's lock (native/python/calls/attach.c).
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from callscope.native import PYTHON_NAME
from callscope.recording.borrow import Borrowed
from callscope.recording.process import Process
from callscope.recording.rules import is_interpreter

IDLE, WAITS, RUNS, REFUSED = range(4)
"""callscope_python_state of native/python/calls/attach.c"""
_PATIENCE = 5.0
"""seconds for the interpreter's lock: extension modules may keep it for long"""
_PAUSE = 0.002
_MOST_RULES = (1 << 16) - 1
_TAKES_LOCK = "PyGILState_Ensure"


def runs_python(pid: int) -> bool:
    """Whether a process holds an interpreter that can be asked. False when it cannot be looked at."""
    try:
        with closing(Process(pid)) as process:
            found = [
                base for path, base in process.libraries().items() if is_interpreter(path.removesuffix(" (deleted)"))
            ]
            return any(_TAKES_LOCK in process.symbols(base) for base in found)
    except OSError:
        return False


def recorder_symbols(process: Process) -> dict[str, int]:
    """Symbols of the library that records Python calls; empty when it is not loaded."""
    for path, base in process.libraries().items():
        if Path(path.removesuffix(" (deleted)")).name == PYTHON_NAME:
            return process.symbols(base)
    return {}


def begin(loan: Borrowed, symbols: dict[str, int], rules: str) -> None:
    """Have calls recorded soon: `is_recording` waits for it. rules: Rules.for_python()."""
    text = rules.encode()[:_MOST_RULES].rpartition(b"\n")[0] if len(rules.encode()) > _MOST_RULES else rules.encode()
    loan.process.write(symbols["callscope_python_rules"], text + b"\0")
    loan.call(symbols["callscope_python_attach"])


def is_recording(process: Process, symbols: dict[str, int]) -> bool:
    """Whether calls are recorded, once the interpreter's lock could be had; False when it could not in time."""
    return _await(process, symbols) == RUNS


def end(loan: Borrowed, symbols: dict[str, int]) -> None:
    """Have calls recorded no more: `has_ended` waits for it."""
    loan.call(symbols["callscope_python_detach"])


def has_ended(process: Process, symbols: dict[str, int]) -> bool:
    """Whether that was done in time. If not, it will be when the lock is free; until then calls lead to the agent,
    which records nothing.
    """
    return _await(process, symbols) == IDLE


def _await(process: Process, symbols: dict[str, int]) -> int:
    deadline, state = time.monotonic() + _PATIENCE, IDLE
    while symbols and time.monotonic() < deadline:
        state = int.from_bytes(process.read(symbols["callscope_python_state"], 4), "little")
        if state != WAITS:
            break
        time.sleep(_PAUSE)
    return state

"""`callscope.trace`: a program of Python records a part of itself."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import ContextDecorator
from functools import cache
from pathlib import Path
from types import TracebackType

import callscope
from callscope.errors import RecordError, UsageError
from callscope.native import AGENT_NAME, PYTHON_NAME, library_path
from callscope.recording.options import RecordOptions, parse_keep
from callscope.recording.session import Session

DEFAULT = "python.trace"
OLDEST, NEWEST = (3, 9), (3, 14)
_one = threading.Lock()
"""held while a part of this process is recorded: there is one agent"""


class trace(ContextDecorator):  # noqa: N801  # used as a function
    """Record the Python calls of all threads between entering and leaving, as a context manager or decorator.

    with callscope.trace("load.trace"):
        load()

    output: the trace directory, python.trace by default. Used again, it writes to load-2.trace, load-3.trace ...
    keep_last: bytes of events to keep, or text such as "64M" or "30s"; 0 keeps all. Where the process is recorded
    already, by `callscope record` or another trace, nothing is done. After leaving, `path` is where the trace is, or
    None. Raises RecordError when this interpreter cannot be recorded, UsageError for impossible options.
    """

    def __init__(self, output: str | os.PathLike[str] = DEFAULT, *, keep_last: int | str = 0) -> None:
        keep, keep_ns = parse_keep(keep_last) if isinstance(keep_last, str) else (keep_last, 0)
        self._first = Path(output).absolute()
        self._options = RecordOptions(
            (sys.executable or "python", *sys.argv), python="only", keep_last=keep, keep_last_ns=keep_ns
        )
        self._used = 0
        self._session: Session | None = None
        self._pid = 0
        self.path: Path | None = None

    def __enter__(self) -> trace:
        if not _one.acquire(blocking=False):
            return self
        try:
            self._begin()
        except BaseException:
            _one.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        _python().callscope_python_stop()
        _agent().callscope_session_end()
        try:
            if os.getpid() == self._pid:  # a child of fork leaves the end to its parent
                if not session.is_there():
                    session.restore()
                session.finish(None, trim=True)
        finally:
            session.release()
            _one.release()

    def _begin(self) -> None:
        if is_recorded():
            _one.release()
            return
        if sys.implementation.name != "cpython" or not OLDEST <= sys.version_info[:2] <= NEWEST:
            raise RecordError("only CPython 3.9 to 3.14 can be recorded: run the program in one")
        self._used += 1
        stem, suffix = self._first.stem, self._first.suffix
        self.path = self._first if self._used == 1 else self._first.with_name(f"{stem}-{self._used}{suffix}")
        session = Session(self.path, self._options)
        own = os.fsencode(Path(callscope.__file__).parent / "recording") + b"/inside.py"
        try:
            if not _agent().callscope_session_begin(os.fsencode(self.path)):
                raise RecordError(f"the trace {self.path} cannot be mapped: free some memory, or raise its limit")
            if not _python().callscope_python_start(own):
                _agent().callscope_session_end()
                raise RecordError("this interpreter cannot be recorded: all tool numbers of sys.monitoring are taken")
        except BaseException:
            session.release()
            raise
        self._session, self._pid = session, os.getpid()


def is_recorded() -> bool:
    """Whether an agent records this process already."""
    try:
        wanted = ctypes.PyDLL(None).callscope_script_wanted
    except (AttributeError, OSError):
        return False
    wanted.restype = ctypes.c_bool
    return bool(wanted())


@cache
def _agent() -> ctypes.PyDLL:
    return _load(AGENT_NAME, "callscope_session_begin", "callscope_session_end")


@cache
def _python() -> ctypes.PyDLL:
    return _load(PYTHON_NAME, "callscope_python_start", "callscope_python_stop")


def _load(name: str, begin: str, end: str) -> ctypes.PyDLL:
    """A native library, visible to others, whose `begin` takes a path. Called with the interpreter's lock."""
    try:
        library = ctypes.PyDLL(str(library_path(name)), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UsageError(f"{name} cannot be loaded here: {error}; record from outside, with callscope record") from None
    getattr(library, begin).argtypes, getattr(library, begin).restype = [ctypes.c_char_p], ctypes.c_bool
    getattr(library, end).argtypes, getattr(library, end).restype = [], None
    return library

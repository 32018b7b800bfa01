"""`callscope.record`: recording for Python programs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from callscope.recording import record as recorder
from callscope.recording.options import RecordOptions, parse_keep, parse_size
from callscope.recording.record import RecordResult


def record(
    command: Sequence[str | os.PathLike[str]],
    *,
    output: str | os.PathLike[str] | None = None,
    modules: Iterable[str] = (),
    functions: Iterable[str] = (),
    excludes: Iterable[str] = (),
    exclude_files: Iterable[str | os.PathLike[str]] = (),
    max_depth: int = 0,
    clock: str = "tsc",
    keep_last: int | str = 0,
    max_size: int | str = 0,
    follow: bool = True,
) -> RecordResult:
    """Run a command, record its calls, and return when it has ended; `callscope record` with the same options.

    command: the program and its arguments. output: the trace directory, PROGRAM.trace in this process's directory by
    default. keep_last: bytes, or text such as "64M" or "30s"; max_size: the same without times. The program shares this
    process's standard streams. Meanwhile SIGINT, SIGQUIT, SIGTERM and SIGHUP sent to this process go to it. Raises a
    CallscopeError when nothing was started.
    """
    kept, kept_ns = parse_keep(keep_last) if isinstance(keep_last, str) else (keep_last, 0)
    options = RecordOptions(
        command=tuple(os.fspath(word) for word in command),
        output=None if output is None else Path(output),
        modules=tuple(modules),
        functions=tuple(functions),
        excludes=tuple(excludes),
        exclude_files=tuple(Path(path) for path in exclude_files),
        max_depth=max_depth,
        clock=clock,
        keep_last=kept,
        keep_last_ns=kept_ns,
        max_size=parse_size(max_size) if isinstance(max_size, str) else max_size,
        follow=follow,
    )
    return recorder.record(options)

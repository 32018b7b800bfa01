"""Runs a program to see what it does, untraced or traced in part: what `record --bisect` compares."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callscope.errors import CallscopeError, RecordError
from callscope.recording.launch import wait_program
from callscope.recording.options import RecordOptions
from callscope.recording.preflight import check_program
from callscope.recording.record import record
from callscope.recording.rules import Functions, Rules
from callscope.recording.wine import find_wine

KEPT = 16 << 20
"""Bytes of events a trial keeps: nobody reads them."""

Units = dict[str, NDArray[np.int64]]
"""Module path -> sorted relative addresses of functions that are switched on or off as a whole, cold parts included."""


@dataclass(frozen=True)
class Behaviour:
    """What a run did. status: 128 + N when signal N ended it, None when it did not end in time. Streams: bytes."""

    status: int | None
    output: bytes
    errors: bytes
    seconds: float = field(compare=False)

    def __str__(self) -> str:
        if self.status is None:
            return f"does not end within {self.seconds:.0f} s"
        if self.status > 128:
            with suppress(ValueError):
                return f"ended by {signal.Signals(self.status - 128).name}"
        return f"exit status {self.status}"


@dataclass
class NarrowedRules(Rules):
    """Rules that trace only the functions in `only` (None: all), and tell what each module has."""

    only: Units | None = None
    tell: Callable[[Units], None] = lambda units: None

    def choose(self, path: str, is_main: bool, functions: Functions) -> NDArray[np.bool_] | None:
        """As Rules.choose, narrowed."""
        chosen = super().choose(path, is_main, functions)
        if chosen is None:
            chosen = np.ones(len(functions.rvas), bool)
        rvas = functions.rvas.astype(np.int64)
        self.tell({path: np.unique(rvas[functions.owners[chosen]])})
        if self.only is not None:
            chosen &= np.isin(rvas[functions.owners], self.only.get(path, np.empty(0, np.int64)))
        return chosen


@dataclass(frozen=True)
class Trials:
    """Runs of one program, all with the same standard input. `timeout`: seconds after which a run is stopped."""

    options: RecordOptions
    directory: Path
    timeout: float

    def plain(self) -> Behaviour:
        """Run it untraced. Raises CallscopeError when it cannot be run."""
        target = check_program(self.options.command)
        path, command = target.path, self.options.command
        if target.image.is_pe:
            path = find_wine()
            command = (path, target.path, *command[1:])

        def run(_: Connection) -> int:
            return wait_program(os.posix_spawn(path, command, os.environ))

        return self._run(run)[0]

    def traced(self, only: Units | None) -> tuple[Behaviour, Units]:
        """Run it with only these functions traced; what it did, and what could be traced in the modules it had.

        Raises CallscopeError when it cannot be recorded.
        """

        def run(answer: Connection) -> int:
            trace = self.directory / "trial.trace"
            options = replace(self.options, output=trace, keep_last=self.options.keep_last or KEPT)
            plain = Rules.of(options)
            lock = threading.Lock()

            def tell(units: Units) -> None:
                with lock:
                    answer.send(units)

            rules = NarrowedRules(plain.modules, plain.functions, plain.excludes, only=only, tell=tell)
            return record(options, rules=rules).exit_status

        return self._run(run)

    def _run(self, run: Callable[[Connection], int]) -> tuple[Behaviour, Units]:
        """Call `run` in a process of its own, in a session of its own, with files as its standard streams."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        streams = {name: self.directory / name for name in ("output", "errors")}
        begin = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(run, theirs, self.directory / "input", streams)
        theirs.close()
        said: list[Any] = []
        try:
            while ours.poll(max(begin + self.timeout - time.monotonic(), 0)):
                said.append(ours.recv())
        except EOFError:
            pass
        finally:
            seconds = time.monotonic() - begin
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            ours.close()
        error = next((item for item in said if isinstance(item, CallscopeError)), None)
        if error is not None:
            raise error
        status = next((item for item in said if isinstance(item, int)), None)
        if status is None and seconds < self.timeout:
            last = streams["errors"].read_text(errors="replace").strip().rpartition("\n")[2]
            raise RecordError(f"the recorder itself ended early: {last}; record without --bisect to see more")
        behaviour = Behaviour(status, streams["output"].read_bytes(), streams["errors"].read_bytes(), seconds)
        units: Units = {}
        for item in said:
            if isinstance(item, dict):
                units |= item
        return behaviour, units


def _child(run: Callable[[Connection], int], answer: Connection, stdin: Path, streams: Mapping[str, Path]) -> None:
    """What the process of a run does; it never returns."""
    try:
        os.setsid()
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        for descriptor, path in enumerate(streams.values(), 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        os.set_inheritable(answer.fileno(), False)
        try:
            answer.send(run(answer))
        except CallscopeError as error:
            answer.send(error)
    finally:
        os._exit(0)


def keep_input(directory: Path) -> None:
    """Put this process's standard input where every run of `Trials` finds it; nothing when it is a terminal."""
    with (directory / "input").open("wb") as file, suppress(OSError):
        while not os.isatty(0) and (data := os.read(0, 1 << 20)):
            file.write(data)


def trial_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory for `Trials`, readable by this user only."""
    return tempfile.TemporaryDirectory(prefix="callscope-bisect-")

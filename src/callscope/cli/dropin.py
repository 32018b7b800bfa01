"""The recorder that libcalltrace.so starts: records the process that loaded it, and writes CallTrace's JSON at its end.

The variables are CallTrace 1.0's ("Environment Variables Configuration" of its README).
"""

from __future__ import annotations

import os
import select
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from callscope.calls.build import build_calls
from callscope.errors import CallscopeError, RecordError
from callscope.exporters import json as calltrace_json
from callscope.recording.options import RecordOptions
from callscope.recording.plans import Plans, planner_of
from callscope.recording.preflight import check_image
from callscope.recording.rules import Rules
from callscope.recording.scratch import Scratch
from callscope.recording.server import Server
from callscope.recording.session import Session
from callscope.reports.database import open_database
from callscope.reports.selection import Selection
from callscope.trace.open import open_trace

DEFAULT_DEPTH = 100
START_FILES = ("_start", "_init", "_fini", "frame_dummy", "*register_tm_clones", "__do_global_dtors_aux")
"""what the linker adds to every program: no call tree of CallTrace has it"""


@dataclass(frozen=True)
class Settings:
    """What the environment asks for. output: the JSON's path."""

    output: Path
    capture_args: bool
    max_depth: int
    pretty: bool
    debug: bool

    @staticmethod
    def of(environment: Mapping[str, str], program: Path) -> Settings:
        """As CallTrace reads it; without CALLTRACE_OUTPUT the JSON stands beside the program."""
        depth = environment.get("CALLTRACE_MAX_DEPTH", "")
        return Settings(
            output=Path(environment.get("CALLTRACE_OUTPUT") or program.with_name(f"{program.stem}.json")).absolute(),
            capture_args=_flag(environment, "CALLTRACE_CAPTURE_ARGS", False),
            max_depth=int(depth) if depth.isascii() and depth.isdigit() else DEFAULT_DEPTH,
            pretty=_flag(environment, "CALLTRACE_PRETTY_JSON", True),
            debug=_flag(environment, "CALLTRACE_DEBUG", False),
        )


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    value = environment.get(name)
    return default if value is None else value.lower() in ("1", "true")


def main(pid: int, descriptor: int) -> None:
    """Record process `pid`, which is starting. Where the session and its socket are is written to `descriptor`."""
    debug = _flag(os.environ, "CALLTRACE_DEBUG", False)
    try:
        serve(pid, descriptor)
    except CallscopeError as error:
        print(f"callscope: error: {error}", file=sys.stderr)
    except Exception as error:
        print(f"callscope: error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        if debug:
            traceback.print_exc()


def serve(pid: int, descriptor: int) -> None:
    """As `main`. Raises CallscopeError."""
    try:
        process = os.pidfd_open(pid)
        program = Path(f"/proc/{pid}/exe").readlink()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError as error:
        raise RecordError(f"process {pid} cannot be looked at: {error.strerror}; use callscope record") from None
    settings = Settings.of(os.environ, program)
    image = check_image(str(program))
    command = tuple(os.fsdecode(word) for word in words) or (str(image.path),)
    scratch = Scratch()
    try:
        trace = scratch.path / "trace"
        options = RecordOptions(
            command,
            output=trace,
            excludes=START_FILES,
            max_depth=settings.max_depth,
            args=settings.capture_args,
            follow=False,
        )
        session = Session(trace, options)
        session.update(lambda state: state.update(main_pid=pid))
        writer = Writer(session, settings)
        plans = Plans(session, Rules.of(options), planner_of(options.scope))
        with Server(plans.answer, writer.write) as server:
            os.write(descriptor, os.fsencode(trace) + b"\0" + os.fsencode(server.path) + b"\0")
            os.close(descriptor)
            if settings.debug:
                print(f"callscope: recording process {pid} for {settings.output}", file=sys.stderr)
            select.select([process], [], [])
        writer.write_rest()
        session.release()
    finally:
        scratch.remove()


class Writer:
    """Writes the JSON of a session, again whenever it is asked to."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session, self._settings = session, settings
        self._lock = threading.Lock()
        self._written: tuple[bytes, bytes] | None = None

    def write(self) -> None:
        """Write what there is. Errors go to standard error: the program waits, and is not to blame."""
        with self._lock:
            try:
                self._write()
            except CallscopeError as error:
                print(f"callscope: error: {error}", file=sys.stderr)

    def write_rest(self) -> None:
        """The process is gone. Write, if something came after the last time: it may have been killed."""
        with suppress(OSError):
            if self._written == self._state():
                return
        self.write()

    def _state(self) -> tuple[bytes, bytes]:
        """The heads of both files: they count what is in them."""
        heads = []
        for name in ("events", "journal"):
            with (self._session.directory / name).open("rb") as file:
                heads.append(file.read(64))
        return heads[0], heads[1]

    def _write(self) -> None:
        settings = self._settings
        self._written = self._state()
        self._session.finish(None, trim=False)
        trace = open_trace(self._session.directory)
        build_calls(trace, force=True)
        try:
            with (
                open_database(self._session.directory) as database,
                tempfile.NamedTemporaryFile(
                    "w", encoding="utf-8", dir=settings.output.parent, prefix=f".{settings.output.name}.", delete=False
                ) as file,
            ):
                for line in calltrace_json.lines(database, Selection(), settings.pretty, settings.max_depth):
                    file.write(line + "\n" if settings.pretty else line)
                if not settings.pretty:
                    file.write("\n")
            Path(file.name).replace(settings.output)
        except OSError as error:
            raise RecordError(f"cannot write {settings.output} ({error.strerror}): set CALLTRACE_OUTPUT") from None
        if settings.debug:
            print(f"callscope: wrote {settings.output}", file=sys.stderr)

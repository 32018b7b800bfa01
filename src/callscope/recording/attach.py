"""Records a program that runs already, and detaches it: Linux programs by ptrace, Windows programs by the launcher."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from callscope.clock import clock_pair
from callscope.errors import RecordError, UsageError
from callscope.recording.archive import Archive
from callscope.recording.attach_linux import inject, withdraw
from callscope.recording.attach_python import runs_python
from callscope.recording.attach_windows import launcher
from callscope.recording.coarse_clock import CoarseClock
from callscope.recording.directory import default_directory
from callscope.recording.loaded import LoadedFiles
from callscope.recording.mailbox import Mailbox
from callscope.recording.options import RecordOptions
from callscope.recording.plans import Plans, planner_of
from callscope.recording.populate import Populator
from callscope.recording.process import PROC
from callscope.recording.record import RecordResult, finish
from callscope.recording.rules import Rules
from callscope.recording.running import check_process, executable, find_process, is_wine, wine_runs
from callscope.recording.server import Server
from callscope.recording.session import Session
from callscope.recording.survivors import Survivor, find_survivors
from callscope.recording.wine import find_wine

_NO_PYTHON = {
    "path": "Python functions",
    "reason": "the interpreter cannot be asked: it is not CPython 3.9 to 3.13, or was busy",
}
INTERVAL = 0.1
"""seconds between looks whether the program is still there"""


@dataclass(frozen=True)
class Attachment:
    """How long to record. duration: seconds; None until the program ends or `stopped()` says so. leave: return at
    once, the program goes on writing.
    """

    duration: float | None = None
    leave: bool = False
    stopped: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class _Target:
    """A running program. pid: of a Linux program, 0 for a Windows program. name: for people; by it the launcher finds a
    Windows program.
    """

    pid: int
    name: str


def attach(options: RecordOptions, how: Attachment) -> RecordResult:
    """Attach to the process that the only word of `options.command` names, record, and detach.

    A number is a process id, of Linux or of Wine; anything else the name of a program. Raises RecordError when there is
    no such process, when several have the name, or when the agent cannot be put into it.
    """
    target = find_target(options.command[0])
    if not target.pid:
        options.check_windows()
    if target.pid and options.wants_stacks:
        raise UsageError("stacks are captured in programs that are recorded from their start: use callscope record")
    if how.leave and options.clock == "coarse":
        raise UsageError("the coarse clock stands still without its recorder: leave --leave or --clock coarse out")
    has_python = bool(target.pid) and runs_python(target.pid)
    if options.python == "only" and not has_python:
        raise UsageError(f"{target.name} runs no Python that can be recorded: leave --python-only out")
    options = replace(options, command=(target.name,), python=options.python if has_python else "off")
    directory = (options.output or default_directory((Path(target.name).name,))).absolute()
    session, archive = Session(directory, options), Archive(directory, options.max_size)
    try:
        plans = Plans(session, Rules.of(options), planner_of(options.scope))
        with CoarseClock(session), attached(target, session, plans) as detach_it:
            begin = time.monotonic()
            targets = find_survivors(session.events, attached=True)
            with suppress(OSError):
                session.update(lambda state: state.update(main_pid=targets[0].pid if targets else None))
            with archive if not how.leave and options.packs else nullcontext():
                if not how.leave and wait(targets, how):
                    detach_it()
        return finish(options, session, plans, time.monotonic() - begin, 0, left=True, archive=archive)
    except RecordError:
        session.release()
        put_back(directory)
        raise
    except OSError as error:
        raise RecordError(f"cannot complete the trace {directory}: {error.strerror or error}; leave it alone") from None
    finally:
        archive.close()
        session.release()


@contextmanager
def attached(target: _Target, session: Session, plans: Plans) -> Iterator[Callable[[], None]]:
    """The program with the agent in it, whose questions are answered within the block; what detaches it.

    The program may have ended before that is called.
    """
    if target.pid:
        plan_loaded(target.pid, plans, session.plans)
        with Server(plans.answer) as server:
            rules = plans.rules.for_python() if plans.rules.python != "off" else None
            done = inject(target.pid, session.directory, server, rules)
            session.update(lambda state: state.update(still_ms=[milliseconds(done.seconds)]))
            if rules is not None and not done.python:
                session.update(lambda state: state["rejected"].append(dict(_NO_PYTHON)))
            with Populator(session.events):
                yield lambda: _quietly(lambda: _withdraw(target.pid, session), target.pid)
        return
    wine = find_wine()
    with Mailbox(plans.answer) as box:
        now = clock_pair()
        offset = now.realtime_ns - now.monotonic_ns
        launcher(wine, "attach", str(session.directory), str(box.directory), str(offset), "0", "--", target.name)
        yield lambda: _quietly(lambda: launcher(wine, "detach", "--", target.name))


def milliseconds(seconds: float) -> float:
    """For people and session.json."""
    return round(seconds * 1000, 3)


def _withdraw(pid: int, session: Session) -> None:
    seconds = withdraw(pid)
    with suppress(OSError):
        session.update(lambda state: state["still_ms"].append(milliseconds(seconds)))


def _quietly(act: Callable[[], object], pid: int = 0) -> None:
    """Detach a program, which may just have ended."""
    try:
        act()
    except RecordError:
        if pid and (PROC / str(pid)).exists():
            raise


def plan_loaded(pid: int, plans: Plans, copies: Path) -> None:
    """Plan what a process has loaded, before anything is done to it. copies: where files are kept that are gone."""
    check_process(pid)
    try:
        files = LoadedFiles(pid, copies)
    except OSError:
        return  # attaching will say why
    plans.locate = files.find
    for module in files.modules:
        plans.answer(module)


def put_back(directory: Path) -> None:
    """Remove a trace that came to nothing, and give its name back to the one that had to make way for it."""
    shutil.rmtree(directory, ignore_errors=True)
    old = directory.with_name(directory.name + ".old")
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def detach(which: str) -> None:
    """Give a process that was left with `attach` its own code back. Raises RecordError."""
    target = find_target(which)
    if target.pid:
        withdraw(target.pid)
    else:
        launcher(find_wine(), "detach", "--", target.name)


def wait(targets: list[Survivor], how: Attachment) -> bool:
    """Wait for the end of the recording; whether the program is still there."""
    end = None if how.duration is None else time.monotonic() + how.duration
    while targets and any((PROC / str(target.pid)).exists() for target in targets):
        left = INTERVAL if end is None else end - time.monotonic()
        if how.stopped() or left <= 0:
            return True
        time.sleep(min(left, INTERVAL))
    return False


def find_target(which: str) -> _Target:
    """The program that a word names. Raises RecordError when there is none, or several."""
    if which.isascii() and which.isdigit():
        pid = int(which)
        if (PROC / which).exists() and not is_wine(pid):
            check_process(pid)
            return _Target(pid, executable(pid).name)
        if not (PROC / which).exists() and not wine_runs():
            raise RecordError(f"there is no process {which}: see ps -e")
        return _Target(0, windows_name(which))
    found = find_process(which)
    if found is None and not wine_runs():
        raise RecordError(f"no process is called {which}: see ps -e")
    return _Target(found or 0, which)


def windows_name(which: str) -> str:
    """What the launcher finds a process by: the program's name of a Linux process of Wine's, or Wine's own id."""
    if not (PROC / which).exists():
        return which
    try:
        words = (PROC / which / "cmdline").read_bytes().split(b"\0")
    except OSError as error:
        raise RecordError(f"process {which} cannot be looked at: {error.strerror}; run as its user") from None
    return os.fsdecode(words[0]).replace("\\", "/").rpartition("/")[2]

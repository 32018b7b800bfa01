"""Records a program that runs already: a Windows program under Wine, by the launcher.

The agent asks for plans from inside the program while this goes on running, and stops its threads for as long as it
takes to write the patches.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from callscope.clock import clock_pair
from callscope.errors import RecordError, UsageError
from callscope.native import LAUNCHER_NAME, library_path
from callscope.recording.directory import default_directory
from callscope.recording.mailbox import Mailbox
from callscope.recording.options import RecordOptions
from callscope.recording.plans import Plans, planner_of
from callscope.recording.record import RecordResult, finish
from callscope.recording.rules import Rules
from callscope.recording.session import Session
from callscope.recording.survivors import Survivor, find_survivors
from callscope.recording.wine import find_wine

INTERVAL = 0.1
"""seconds between looks whether the program is still there"""
PATIENCE = 180.0
"""seconds that the launcher may take"""


REMEDIES = {
    "no such process": "see winedbg --command 'info proc' for what Wine runs in this prefix",
    "traced already": "detach it first, with callscope detach",
}
"""What to do, by what the launcher says."""


@dataclass(frozen=True)
class Attachment:
    """How long to record. duration: seconds; None until the program ends or `stopped()` says so. leave: return at
    once, the program goes on writing.
    """

    duration: float | None = None
    leave: bool = False
    stopped: Callable[[], bool] = lambda: False


def attach(options: RecordOptions, how: Attachment) -> RecordResult:
    """Attach to the process that the only word of `options.command` names, record, and detach.

    A number is a process id, of Linux or of Wine; anything else the name of a program. Raises RecordError when there is
    no such process, when several have the name, or when the agent cannot be put into it.
    """
    wine = find_wine()
    which = target_name(options.command[0])
    options = replace(options, command=(which,))
    directory = (options.output or default_directory((Path(which).name,))).absolute()
    session = Session(directory, options)
    try:
        plans = Plans(session, Rules.of(options), planner_of(options.scope))
        with Mailbox(plans.answer) as box:
            now = clock_pair()
            offset = now.realtime_ns - now.monotonic_ns
            begin = time.monotonic()
            launcher(wine, "attach", str(directory), str(box.directory), str(offset), "0", "--", which)
            targets = find_survivors(session.events, attached=True)
            with suppress(OSError):
                session.update(lambda state: state.update(main_pid=targets[0].pid if targets else None))
            if not how.leave and wait(targets, how):
                # The program may end between the look and the call.
                with suppress(RecordError):
                    launcher(wine, "detach", "--", which)
        return finish(options, session, plans, time.monotonic() - begin, 0, left=how.leave)
    except RecordError:
        session.release()
        put_back(directory)
        raise
    except OSError as error:
        raise RecordError(f"cannot complete the trace {directory}: {error.strerror or error}; leave it alone") from None
    finally:
        session.release()


def put_back(directory: Path) -> None:
    """Remove a trace that came to nothing, and give its name back to the one that had to make way for it."""
    shutil.rmtree(directory, ignore_errors=True)
    old = directory.with_name(directory.name + ".old")
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def detach(which: str) -> None:
    """Switch off every trampoline in a process that was left with `attach`. Raises RecordError."""
    launcher(find_wine(), "detach", "--", target_name(which))


def wait(targets: list[Survivor], how: Attachment) -> bool:
    """Wait for the end of the recording; whether the program is still there."""
    end = None if how.duration is None else time.monotonic() + how.duration
    while targets and any(Path(f"/proc/{target.pid}").exists() for target in targets):
        if how.stopped() or (end is not None and time.monotonic() >= end):
            return True
        time.sleep(INTERVAL)
    return False


def launcher(wine: str, *words: str) -> None:
    """Run the launcher. Raises RecordError with its reason."""
    command = [wine, str(library_path(LAUNCHER_NAME)), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise RecordError(f"Wine does not answer for {PATIENCE:.0f} s: see whether its programs still run") from None
    if done.returncode == 0:
        return
    answers: dict[str, Any] = {}
    for line in (done.stdout + done.stderr).splitlines():
        with suppress(ValueError):
            answers |= json.loads(line)
    reason = answers.get("error") or f"the launcher ended with status {done.returncode}"
    several = answers.get("several")
    if several:
        listed = ", ".join(map(str, several))
        raise RecordError(f"{words[-1]} is {len(several)} processes: name one by its Wine process id, of {listed}")
    remedy = next(
        (text for part, text in REMEDIES.items() if part in reason), "check that it runs under this Wine prefix"
    )
    raise RecordError(f"{reason}; {remedy}")


def target_name(which: str) -> str:
    """What the launcher finds the process by: a Linux process of Wine's by its program's name.

    Raises UsageError for a Linux process that is none of Wine's.
    """
    if not which.isascii() or not which.isdigit() or not Path(f"/proc/{which}").exists():
        return which
    try:
        words = Path(f"/proc/{which}/cmdline").read_bytes().split(b"\0")
        maps = Path(f"/proc/{which}/maps").read_text(errors="replace")
    except OSError as error:
        raise RecordError(f"process {which} cannot be looked at: {error.strerror}; run as its user") from None
    if "ntdll.so" not in maps:
        raise UsageError(
            f"process {which} is no Windows program, and attaching to Linux programs is not there yet: "
            "start it with callscope record"
        )
    return os.fsdecode(words[0]).replace("\\", "/").rpartition("/")[2]

"""Records a program: plan, launch, wait, finish."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from callscope.errors import ImageError, PlanError, RecordError
from callscope.native import forward_signals, signals_held
from callscope.patching.cache import load_or_plan
from callscope.patching.scope import Scope
from callscope.recording.archive import Archive
from callscope.recording.budget import Budget
from callscope.recording.coarse_clock import CoarseClock
from callscope.recording.count import EventCounts, count_events
from callscope.recording.directory import JOURNAL_NAME, default_directory
from callscope.recording.hottest import Hottest, hottest
from callscope.recording.journal import JournalSummary, summarise_journal
from callscope.recording.launch import (
    preloaded,
    start_program,
    traced_environment,
    wait_program,
)
from callscope.recording.mailbox import Mailbox
from callscope.recording.options import RecordOptions
from callscope.recording.plans import Module, PlannedImage, Plans, planner_of
from callscope.recording.populate import Populator
from callscope.recording.preflight import Target, check_program, with_python
from callscope.recording.rules import Rules
from callscope.recording.server import Server
from callscope.recording.session import Session
from callscope.recording.survivors import Survivor, find_survivors
from callscope.recording.unpacked import is_packed
from callscope.recording.watch import Watch
from callscope.recording.wine import find_wine, launcher_command

ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""Given a title, a context whose value is told (done, in all) from time to time."""


def no_progress(title: str) -> AbstractContextManager[None]:
    """A progress bar that shows nothing."""
    return nullcontext()


@dataclass(frozen=True)
class RecordResult:
    """What came of a recording.

    options: as recorded with. trace: the directory. exit_status: of the program, 128 + N when signal N ended it.
    seconds: from its start to its end; stopped_seconds: to where recording stopped, if it did before. counts, journal:
    what was recorded. size: bytes of disk the trace takes. images: what was planned. chosen: by first function id, how
    many functions of an image the rules chose, if not all. rejected: modules that could not be planned, with reasons.
    unmatched: rules that matched nothing. survivors: processes still running. dumps: traces that a flight recorder left
    meanwhile. failures: what could not be written, and why. hottest: the function that made most calls, if one did.
    """

    options: RecordOptions
    trace: Path
    exit_status: int
    seconds: float
    counts: EventCounts
    journal: JournalSummary
    size: int
    images: list[PlannedImage] = field(default_factory=list)
    chosen: dict[int, int] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    survivors: list[Survivor] = field(default_factory=list)
    stopped_seconds: float = 0
    still_ms: list[float] = field(default_factory=list)
    """for how many milliseconds a program stood still while it was attached to, and while it was detached"""
    hottest: Hottest | None = None
    dumps: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    windows_status: int | None = None


def record(options: RecordOptions, progress: ProgressBar = no_progress, rules: Rules | None = None) -> RecordResult:
    """Run a program and record its calls until it ends.

    The program has this process's standard streams, terminal and directory. `progress` shows the planning before its
    start; `rules` stand in for those of the options. Raises UsageError, ImageError, PlanError or RecordError when
    nothing was started, and RecordError when the trace was removed meanwhile.
    """
    rules = rules or Rules.of(options)
    directory = (options.output or default_directory(options.command)).absolute()
    options = replace(options, command=with_python(options.command))
    target = check_program(options.command)
    if target.image.is_pe:
        options.check_windows()
    wine = find_wine() if target.image.is_pe else None
    plan_ahead(rules, options.scope, target, progress)
    session = Session(directory, options)
    watch, archive, ended = Watch(directory), Archive(directory, options.max_size), 0
    try:
        plans = Plans(session, rules, planner_of(options.scope))
        for path in images_ahead(target):
            plans.answer(Module(path, b"", is_main=True))
        with watch if options.keeps_last else archive if options.packs else nullcontext():
            seconds, status = run_traced(options, target, session, plans, wine)
        ended = status
        result = finish(options, session, plans, seconds, status, archive=archive)
        return replace(result, dumps=watch.dumps, failures=result.failures + watch.failures)
    except OSError as error:
        what = error.strerror or str(error)
        failure = RecordError(f"cannot complete the trace {directory}: {what}; leave it alone while recording")
        failure.exit_status = ended or failure.exit_status  # the program has ended, and its status is what counts
        raise failure from None
    finally:
        archive.close()
        session.release()


def images_ahead(target: Target) -> list[str]:
    """The programs that will certainly or probably run, without those that have to unpack themselves first."""
    paths = dict.fromkeys(str(path.resolve()) for path in (target.image.path, *target.expected))
    return [path for path in paths if not is_packed(path)]


def plan_ahead(rules: Rules, scope: Scope, target: Target, progress: ProgressBar) -> None:
    """Plan what will be asked for first, so that the program's start waits for nothing.

    Raises ImageError or PlanError when the program cannot be planned and nothing else is to be traced.
    """
    for path in images_ahead(target):
        if not rules.wants_module(path, is_main=True):
            continue

        try:
            with progress(f"planning {Path(path).name}") as tell:
                load_or_plan(path, progress=tell, scope=scope)
        except (ImageError, PlanError):
            if not rules.modules and not rules.functions and path == str(target.image.path.resolve()):
                raise


def run_traced(
    options: RecordOptions, target: Target, session: Session, plans: Plans, wine: str | None
) -> tuple[float, int]:
    """Run the program, through Wine when that is given, while its agents are answered: as `run`."""
    if wine is None:
        with Server(plans.answer) as server:
            libraries = preloaded(server.directory, options.python != "off")
            rules = plans.rules.for_python()
            environment = traced_environment(
                os.environ, libraries, session.directory, server.path, options.follow, rules
            )
            return run(target.path, options.command, environment, session)
    with Mailbox(plans.answer) as box:
        arguments = options.command[1:]
        command = launcher_command(wine, session.directory, box.directory, target.path, arguments, options.follow)
        ended = run(wine, command, os.environ, session)
        session.state["windows_status"] = box.status()  # written with the rest of the end
        return ended


def run(path: str, command: tuple[str, ...], environment: Mapping[str, str], session: Session) -> tuple[float, int]:
    """Start a program and wait for its end; the seconds it took, and its exit status."""
    with signals_held(), CoarseClock(session):
        begin = time.monotonic()
        pid = start_program(path, command, environment)
        forward_signals(pid)
        with suppress(OSError):  # a full disk must not part us from the program
            session.update(lambda state: state.update(main_pid=pid))
        with Populator(session.events), Budget(session, float(session.state["options"]["max_overhead"])):
            status = wait_program(pid)
        return time.monotonic() - begin, status


def finish(
    options: RecordOptions,
    session: Session,
    plans: Plans,
    seconds: float,
    status: int,
    left: bool = False,
    archive: Archive | None = None,
) -> RecordResult:
    """Complete the trace and sum it up. `left`: a process that was attached to goes on writing. `archive`: what was
    packed meanwhile.
    """
    failures, shown = [], session.directory
    if not session.is_there():
        session.restore(archive.descriptor if archive else -1)
        plans.restore()
        failures.append(f"{shown} was removed while it was recorded: what there was is in {session.directory} now")
    survivors = find_survivors(session.events, attached=left)
    session.finish(status, trim=not survivors)
    journal = summarise_journal(session.directory / JOURNAL_NAME)
    plans.rules.saw_python(journal.scripts)
    plans.keep([image.id_base for image in plans.images()] if options.wants_stacks else journal.crashed_regions())
    counts = count_events(session.events, *((archive.packed, archive.counts) if archive else ()))
    return RecordResult(
        options=options,
        trace=session.directory,
        exit_status=status,
        seconds=seconds,
        counts=counts,
        failures=failures,
        stopped_seconds=session.seconds_until(counts.stopped[1]),
        journal=journal,
        size=disk_bytes(session.directory),
        images=plans.images(),
        chosen=plans.chosen_counts,
        rejected=[(entry["path"], entry["reason"]) for entry in session.state["rejected"]],
        unmatched=plans.rules.unmatched(),
        survivors=survivors,
        still_ms=list(session.state.get("still_ms", [])),
        hottest=hottest(session.events, plans.images(), counts.calls),
        windows_status=session.state.get("windows_status"),
    )


def disk_bytes(directory: Path) -> int:
    """Bytes of disk that the files of a directory take: sparse files less than they are long."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())

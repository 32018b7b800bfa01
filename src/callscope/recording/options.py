"""What to record: the options of one recording, checked."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from callscope.errors import UsageError
from callscope.patching.scope import Arguments, Calls, Scope

SMALLEST_KEEP = 4 << 20
SMALLEST_SIZE = 1 << 20
SHORTEST_INTERVAL, LONGEST_INTERVAL = 100_000, 3_600_000_000_000
LONGEST_KEEP = 24 * LONGEST_INTERVAL
SHORTEST_WINDOWS_INTERVAL = 1_000_000
_NOT_TO_BE_CAUGHT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE,
                     signal.SIGBUS, signal.SIGTRAP, signal.SIGSYS}  # fmt: skip
DEPTH_LIMIT = 0xFFFFFFFF
SMALLEST_BUDGET, LARGEST_BUDGET = 0.01, 100.0
MOST_SAMPLED = 1_000_000_000
_SECONDS = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class RecordOptions:
    """One recording. Raises UsageError when an option cannot be met.

    command: the program and its arguments, as typed.
    output: the trace directory; None for PROGRAM.trace in the current directory.
    modules, functions, excludes: globs as `callscope.recording.rules` reads them; no modules: the program itself.
    exclude_files: files of further excludes, one a line.
    max_depth: calls nested deeper are not recorded; 0 for no limit.
    triggers, under, callers: globs of functions; recorded are only their calls with all that these call, only what they
    call, or only their calls with what leads to them. sample: of so many subtrees one is recorded.
    max_overhead: what tracing may cost, as a fraction of the program's own time: functions that are called most are
    muted while it runs; 0 for no limit.
    start_off: record nothing until `callscope on`. switchable: have a thread of the agent in the program for that.
    clock: 'tsc'; 'coarse' for times of a clock that the recorder moves on; 'none' for the order of calls alone.
    keep_last: bytes of events to keep, the oldest making room; 0 keeps all. keep_last_ns: or of how many nanoseconds
    until now, as long as there is room.
    max_size: bytes that the events may take on disk; recording stops there. 0: no limit. Of a flight recorder by time:
    bytes to keep at most.
    compress: finished events are packed while the program runs, once there are many.
    dump_on: a signal at which a flight recorder is written to another trace.
    follow: trace child processes and the programs that replace the first by exec.
    args: record arguments and results, as far as prototypes are known; args_of: of functions that these globs match;
    raw_args: also the registers of functions without a prototype; prototypes: a file of C declarations.
    stacks_at: globs of functions at whose entries the stack is captured; stacks_every_ns: nanoseconds of processor time
    between captures in each thread, 0 for none; stacks_on: a signal at which all threads' stacks are captured.
    python: 'on' for calls of Python functions beside native ones, 'only' without those, 'off' for none;
    interpreter_frames: Python's interpreter itself is traced like other programs.
    calls: record call sites too: 'on', or 'once' for nothing but each site's first call; '' for none.
    """

    command: tuple[str, ...]
    output: Path | None = None
    modules: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    exclude_files: tuple[Path, ...] = ()
    max_depth: int = 0
    triggers: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    callers: tuple[str, ...] = ()
    sample: int = 1
    max_overhead: float = 0.0
    start_off: bool = False
    switchable: bool = False
    clock: str = "tsc"
    keep_last: int = 0
    keep_last_ns: int = 0
    max_size: int = 0
    compress: bool = True
    dump_on: str = ""
    follow: bool = True
    calls: str = ""
    args: bool = False
    args_of: tuple[str, ...] = ()
    raw_args: bool = False
    prototypes: Path | None = None
    stacks_at: tuple[str, ...] = ()
    stacks_every_ns: int = 0
    stacks_on: str = ""
    python: Literal["on", "only", "off"] = "on"
    interpreter_frames: bool = False

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise UsageError("no program to record: name one, as in callscope record -- PROGRAM")
        if any("\0" in argument for argument in self.command):
            raise UsageError("a program's arguments cannot hold a NUL character: leave it out")
        if not 0 <= self.max_depth <= DEPTH_LIMIT:
            raise UsageError(f"a depth limit of {self.max_depth} is impossible: give 1 to {DEPTH_LIMIT}, or 0 for none")
        if self.clock not in ("tsc", "coarse", "none"):
            raise UsageError(f"there is no clock {self.clock!r}: use tsc, coarse or none")
        if not 1 <= self.sample <= MOST_SAMPLED:
            raise UsageError(f"a sample of 1/{self.sample} is impossible: give 1/1 to 1/{MOST_SAMPLED}")
        if self.callers and (self.triggers or self.under or self.sample > 1 or self.max_depth):
            raise UsageError("--caller cannot be combined with --trigger, --under, --sample or --max-depth")
        if self.max_overhead and not SMALLEST_BUDGET <= self.max_overhead <= LARGEST_BUDGET:
            raise UsageError("what tracing may cost is 1% to 10000%: choose between")
        if (self.start_off or self.switchable) and self.clock == "none":
            raise UsageError("what is switched on and off needs times: use --clock coarse or tsc")
        if self.python not in ("on", "only", "off"):
            raise UsageError(f"Python cannot be recorded {self.python!r}: use on, only or off")
        if self.python == "only" and self.interpreter_frames:
            raise UsageError("the interpreter's own functions are not Python's: leave --python-only or it out")
        if self.calls not in ("", "on", "once"):
            raise UsageError(f"there is no --calls={self.calls}: use --calls or --calls=once")
        if self.prototypes is not None and not isinstance(self.prototypes, Path):
            object.__setattr__(self, "prototypes", Path(self.prototypes))
        if self.prototypes is not None and not (self.args or self.args_of or self.raw_args):
            raise UsageError("prototypes are for arguments: add --args or --args-of")
        if self.stacks_every_ns and not SHORTEST_INTERVAL <= self.stacks_every_ns <= LONGEST_INTERVAL:
            raise UsageError("stacks can be captured every 100us to every 1h of processor time: choose between")
        signal_number(self.stacks_on)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise UsageError when what is to be kept makes no sense."""
        kept = self.keep_last or (self.max_size if self.keep_last_ns else 0)
        if kept and kept < SMALLEST_KEEP:
            raise UsageError(f"{kept} bytes are too few for a flight recorder: keep at least 4M")
        if self.keep_last and (self.keep_last_ns or self.max_size):
            raise UsageError("--keep-last SIZE is the size already: leave the other limit out")
        if self.max_size and self.max_size < SMALLEST_SIZE:
            raise UsageError(f"{self.max_size} bytes are too few for a trace: allow at least 1M")
        if self.keep_last_ns and self.clock == "none":
            raise UsageError("--keep-last TIME needs a clock: give a SIZE, or leave --clock none out")
        if self.dump_on and not self.keeps_last:
            raise UsageError("--dump-on is for a flight recorder: add --keep-last, such as --keep-last 64M")
        if signal_number(self.dump_on) and signal_number(self.dump_on) == signal_number(self.stacks_on):
            raise UsageError("--dump-on and --stacks-on cannot have the same signal: choose another, such as USR1")

    @property
    def keeps_last(self) -> bool:
        """Whether this is a flight recorder: the oldest events make room for the newest."""
        return bool(self.keep_last or self.keep_last_ns)

    def check_windows(self) -> None:
        """Raise UsageError when a Windows program cannot be recorded so."""
        if self.is_switched:
            raise UsageError("only Linux programs can be switched: leave --start-off, --switchable, --max-overhead out")
        if self.stacks_on:
            raise UsageError("Windows has no signals to capture stacks at: use --stacks-every or --stacks-at")
        if self.dump_on:
            raise UsageError("Windows has no signals to dump a flight recorder at: use callscope dump")
        if 0 < self.stacks_every_ns < SHORTEST_WINDOWS_INTERVAL:
            raise UsageError("a Windows program's stacks can be captured every 1ms at most: choose a longer interval")

    @property
    def packs(self) -> bool:
        """Whether finished events are compressed meanwhile; those of a flight recorder are soon gone anyway."""
        return self.compress and not self.keeps_last

    @property
    def is_switched(self) -> bool:
        """Whether the agent is to obey while the program runs."""
        return self.start_off or self.switchable or self.max_overhead > 0

    @property
    def wants_stacks(self) -> bool:
        """Whether call stacks are captured, from outside of the program's own code."""
        return bool(self.stacks_at or self.stacks_every_ns or self.stacks_on)

    @property
    def scope(self) -> Scope:
        """What plans are to record. Where only some functions are traced, calls of the others leave what is traced."""
        some = bool(self.functions or self.excludes or self.exclude_files)
        calls: Calls = ("all" if some else "leaving") if self.calls else ""
        wanted = self.args or self.args_of or self.raw_args
        arguments = Arguments(() if self.args else self.args_of, self.raw_args, self.prototypes) if wanted else None
        return Scope(calls, self.calls == "once", arguments, self.stacks_at)


def signal_number(name: str) -> int:
    """The number of a signal by its name or number, 0 for "". Raises UsageError for one that cannot be caught."""
    if not name:
        return 0
    number = int(name) if name.isascii() and name.isdigit() and len(name) < 4 else 0
    with suppress(KeyError):
        number = number or signal.Signals[name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"]
    if number not in signal.valid_signals() or number in _NOT_TO_BE_CAUGHT:
        raise UsageError(f"signal {name!r} is not one that can be caught for this: choose one such as USR2")
    return int(number)


def parse_percentage(text: str) -> float:
    """A fraction from '20%' or '20'. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,5}(?:\.\d{1,3})?)\s*%?\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is no share: write a percentage such as 20%")
    return float(match[1]) / 100


def parse_sample(text: str) -> int:
    """N from '1/N'. Raises UsageError."""
    match = re.fullmatch(r"1/(\d{1,10})", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no sample: write 1/N, such as 1/100")
    return int(match[1])


def parse_size(text: str) -> int:
    """Bytes from a number with an optional unit K, M, G or T (powers of 1024), as '64M' or '1.5 GiB'.

    Raises UsageError.
    """
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    if match is None:
        raise UsageError(f"{text!r} is not a size: write a number and K, M, G or T, such as 64M")
    return int(float(match[1]) * _UNITS[match[2]])


def parse_keep(text: str) -> tuple[int, int]:
    """Bytes and nanoseconds, one of them 0, from a size as '64M' or a time as '30s', '5min' or '1h'.

    Raises UsageError.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(ms|s|min|h)\s*", text)
    if match is None:
        return parse_size(text), 0
    nanoseconds = round(float(match[1]) * _SECONDS[match[2]] * 1e9)
    if not 0 < nanoseconds <= LONGEST_KEEP:
        raise UsageError(f"{text} cannot be kept: give a time up to 24h, or a size")
    return 0, nanoseconds

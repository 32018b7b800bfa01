"""Finds the functions whose patches change what a program does, by tracing ever smaller parts of it.

The search is delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002): of
all functions the smallest set found with which the program still misbehaves. Those are excluded and the search goes on
until the program behaves as untraced with all others traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePath

import numpy as np

from callscope.binary.open import open_image
from callscope.binary.symbols import open_symbols
from callscope.errors import CallscopeError, RecordError
from callscope.recording.options import RecordOptions
from callscope.recording.trial import Behaviour, Trials, Units, keep_input, trial_directory

PATIENCE = 20
"""A traced run counts as hanging when it takes this many times as long as an untraced one, and LEAST_SECONDS more."""
LEAST_SECONDS = 10.0
MOST_SECONDS = 600.0
MOST_CULPRITS = 32

Tell = Callable[[str], None]
Function = tuple[str, int]
"""Module path, and the relative address of a function in it."""


@dataclass(frozen=True)
class Culprit:
    """A function that must not be traced. rule: how an exclude file names it. why: what the program did with it."""

    rule: str
    name: str
    why: str


@dataclass
class BisectResult:
    """What came of a search. culprits: in the order they were found. runs: of the program, all in all.

    steady: whether untraced runs print the same each time, so that output was compared too. file: the exclude file.
    """

    culprits: list[Culprit] = field(default_factory=list)
    runs: int = 0
    steady: bool = True
    file: Path | None = None


def bisect(options: RecordOptions, tell: Tell, file: Path) -> BisectResult:
    """Run a program many times and find the functions that make it misbehave when they are traced.

    It misbehaves when its exit status is another than untraced, when it does not end, or, if two untraced runs print
    the same, when it prints something else. `tell` gets a line now and then. The functions found are written to `file`,
    together with nothing else. Raises CallscopeError when the program cannot be recorded, and RecordError when untraced
    runs already differ in their exit status or no set of functions explains the difference.
    """
    with trial_directory() as name:
        directory = Path(name)
        keep_input(directory)
        return _Search(options, directory, tell).run(file)


class _Search:
    def __init__(self, options: RecordOptions, directory: Path, tell: Tell) -> None:
        self._trials = Trials(options, directory, MOST_SECONDS)
        self._tell = tell
        self._result = BisectResult()
        self._wanted: Behaviour | None = None
        self._bad = ""

    def run(self, file: Path) -> BisectResult:
        result = self._result
        self._learn_behaviour()
        bad, units = self._trace(None)
        remaining, found_all = _functions(units), set[Function]()
        self._tell(f"all {len(remaining):,} functions traced: {'as untraced' if bad is None else bad}")
        while bad is not None:
            if not remaining or len(result.culprits) >= MOST_CULPRITS:
                raise RecordError(f"tracing changes the program ({bad}) whatever is left out: this is a fault of ours")
            found, why = self._minimise(remaining, bad)
            for function in found:
                result.culprits.append(culprit(function, why))
                self._tell(f"found {result.culprits[-1].name}: {why}")
            found_all.update(found)
            remaining = [function for function in remaining if function not in found_all]
            bad, units = self._trace(_units(remaining))
            # The program may load modules now that it did not come to before.
            known = found_all.union(remaining)
            remaining += [function for function in _functions(units) if function not in known]
            self._tell(f"{len(remaining):,} others traced: {'as untraced' if bad is None else bad}")
        if result.culprits:
            write_exclude_file(file, result.culprits)
            result.file = file
        return result

    def _learn_behaviour(self) -> None:
        first = self._plain()
        second = self._plain()
        if first.status is None or first.status != second.status:
            raise RecordError(
                f"the program behaves differently from run to run even untraced ({first}, then {second}): "
                "give it input with which it does not"
            )
        self._result.steady = (first.output, first.errors) == (second.output, second.errors)
        self._wanted = first
        slowest = max(first.seconds, second.seconds)
        limit = min(PATIENCE * slowest + LEAST_SECONDS, MOST_SECONDS)
        self._trials = Trials(self._trials.options, self._trials.directory, limit)
        self._tell(f"untraced: {first}{'' if self._result.steady else '; its output varies and is not compared'}")

    def _plain(self) -> Behaviour:
        self._result.runs += 1
        return self._trials.plain()

    def _trace(self, only: Units | None) -> tuple[str | None, Units]:
        """How the program misbehaves with these functions traced, or None; and the functions there are."""
        self._result.runs += 1
        seen, units = self._trials.traced(only)
        wanted = self._wanted
        assert wanted is not None
        if seen.status != wanted.status:
            return f"{seen} instead of {wanted}", units
        if self._result.steady and (seen.output, seen.errors) != (wanted.output, wanted.errors):
            return "other output", units
        return None, units

    def _minimise(self, functions: Sequence[Function], bad: str) -> tuple[list[Function], str]:
        """A smallest part of `functions` that still makes the program misbehave, and how it does."""
        kept, pieces = list(functions), 2
        self._bad = bad
        while len(kept) > 1:
            bounds = np.linspace(0, len(kept), pieces + 1).astype(int).tolist()
            parts = [kept[low:high] for low, high in pairwise(bounds) if high > low]
            smaller = next((part for part in parts if self._misbehaves(part)), None)
            if smaller is not None:
                kept, pieces = smaller, 2
                continue
            rests = [[f for other in parts if other is not part for f in other] for part in parts] if pieces > 2 else []
            smaller = next((rest for rest in rests if self._misbehaves(rest)), None)
            if smaller is not None:
                kept, pieces = smaller, max(pieces - 1, 2)
            elif pieces >= len(kept):
                break
            else:
                pieces = min(2 * pieces, len(kept))
        return kept, self._bad

    def _misbehaves(self, functions: Sequence[Function]) -> bool:
        bad, _ = self._trace(_units(functions))
        self._bad = bad or self._bad
        self._tell(f"{len(functions):,} of them traced: {bad or 'as untraced'}")
        return bad is not None


def _functions(units: Units) -> list[Function]:
    return [(path, rva) for path in sorted(units) for rva in units[path].tolist()]


def _units(functions: Sequence[Function]) -> Units:
    units: dict[str, list[int]] = {}
    for path, rva in functions:
        units.setdefault(path, []).append(rva)
    return {path: np.array(sorted(rvas), np.int64) for path, rvas in units.items()}


def function_rule(function: Function) -> str:
    """How an exclude file names a function: by module and address, for names need not be unique."""
    path, rva = function
    return f"{PurePath(path).name}!{open_image(path).base + rva:#x}"


def culprit(function: Function, why: str) -> Culprit:
    """A function with its name, where it has one."""
    path, rva = function
    name = None
    with suppress(CallscopeError):
        name = open_symbols(Path(path)).name(rva)
    module = PurePath(path).name
    return Culprit(function_rule(function), f"{module}!{name}" if name else f"{module}+{rva:#x}", why)


def write_exclude_file(file: Path, culprits: Sequence[Culprit]) -> None:
    """Write what `record --exclude-from` reads; an earlier file becomes FILE.old. Raises RecordError."""
    lines = [line for found in culprits for line in (f"# {found.name}: {found.why}", found.rule)]
    try:
        if file.exists():
            file.replace(file.with_name(file.name + ".old"))
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot write {file}: {error.strerror}; choose a directory you may write to") from None

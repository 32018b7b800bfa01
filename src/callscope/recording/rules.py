"""Which modules and functions a recording traces.

    module rule      a glob on a module's file name or path; `main` is the program itself, `all` every module
    function rule    a glob on a function's name, `0x1a2b0` an address in it, `git+0x1a2b0` its name without symbols,
                     `pdata:17` the function of entry 17, from 0, in a PE image's exception directory (.pdata);
                     `MODULE!` before it limits it to the modules that glob matches

Globs are those of `callscope.globs`.

Modules: those that a module rule matches, the program itself when there is none, and those named by a function rule.
Functions: all in such a module when there are no function rules, else those that one matches. Excludes beat both,
whatever the order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from callscope.errors import UsageError
from callscope.format import ROLE_CALLER, ROLE_TRIGGER, ROLE_UNDER
from callscope.globs import NameGlob, module_matches
from callscope.patching.hooks import is_instrumented
from callscope.recording.options import RecordOptions

MAIN = "main"
ALL = "all"


_INTERPRETER = re.compile(r"(lib)?python[23]?(\.[0-9]+)?[a-z]*(\.so.*)?")


def is_interpreter(path: str) -> bool:
    """Whether a module is Python's interpreter, by its file name: its own functions say little about the program."""
    return bool(_INTERPRETER.fullmatch(PurePath(path).name))


@dataclass(frozen=True)
class Functions:
    """What the rules need to know of a module's functions, in the order of its plan.

    rvas, sizes: bytes, u4 or wider. owners: index of the function that each is a part of, its own for a whole one.
    base: the address the file gives its first byte. names: called at most once, for the names of `rvas` (None where
    there is no symbol). entries: where the entries of its exception directory begin, in their order.
    """

    rvas: NDArray[np.unsignedinteger]
    sizes: NDArray[np.unsignedinteger]
    owners: NDArray[np.unsignedinteger]
    base: int
    names: Callable[[], Sequence[str | None]]
    entries: Callable[[], Sequence[int]] = tuple


@dataclass
class FunctionRule:
    """One function rule: a glob, or the address or ordinal in it. matched: a function of some module did."""

    text: str
    glob: NameGlob
    address: int | None
    ordinal: int | None = None
    matched: bool = False

    @staticmethod
    def parse(text: str) -> FunctionRule:
        """Read one rule; UsageError when it is empty."""
        glob = NameGlob(text)
        if not glob.name or glob.module == "":
            raise UsageError(
                f"{text!r} is no function rule: write FUNCTION, MODULE!FUNCTION or an address such as 0x1a2b0"
            )
        is_address = re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", glob.name)
        ordinal = re.fullmatch(r"pdata:([0-9]{1,9})", glob.name)
        return FunctionRule(
            text, glob, int(glob.name, 16) if is_address else None, int(ordinal[1]) if ordinal else None
        )

    def fits_python(self, module: str, file: str, name: str) -> bool:
        """Whether a function of Python matches: its module or file, and its qualified name or the last part."""
        is_module = self.glob.module is None or any(
            fnmatchcase(text, self.glob.module) for text in (module, file, PurePath(file).name) if text
        )
        return is_module and any(self.glob.matches_name(text) for text in (name, name.rpartition(".")[2]))


@dataclass
class Rules:
    """The rules of a recording, ready to be asked."""

    modules: tuple[str, ...]
    functions: list[FunctionRule]
    excludes: list[FunctionRule]
    roles: list[tuple[int, FunctionRule]] = field(default_factory=list)
    python: str = "off"
    interpreter_frames: bool = True
    _seen_modules: set[str] = field(default_factory=set)

    @staticmethod
    def of(options: RecordOptions) -> Rules:
        """The rules of `options`, exclude files read; UsageError when one cannot be read or holds nonsense."""
        excludes = [FunctionRule.parse(text) for text in options.excludes]
        for path in options.exclude_files:
            excludes += read_exclude_file(path)
        functions = [FunctionRule.parse(text) for text in options.functions]
        frames = options.interpreter_frames or options.python == "off"
        named = ((ROLE_TRIGGER, options.triggers), (ROLE_UNDER, options.under), (ROLE_CALLER, options.callers))
        roles = [(role, FunctionRule.parse(text)) for role, texts in named for text in texts]
        return Rules(options.modules, functions, excludes, roles, options.python, frames)

    def wants_module(self, path: str, is_main: bool) -> bool:
        """Whether any function of the module may be traced."""
        if self.python == "only":
            return False
        by_module_rule = self._module_rule(path, is_main)
        return bool(self._function_rules(path, by_module_rule)) if self.functions else by_module_rule

    def choose(self, path: str, is_main: bool, functions: Functions) -> NDArray[np.bool_] | None:
        """Which functions of the module to trace: a bool for each, or None for all of them."""
        wanted = self._function_rules(path, self._module_rule(path, is_main))
        excluded = [rule for rule in self.excludes if rule.glob.matches_module(path)]
        if not self.functions and not excluded:
            return None
        match = _Matcher(PurePath(path).name, functions)
        chosen = match.any_of(wanted) if self.functions else np.ones(len(functions.rvas), bool)
        chosen &= ~match.any_of(excluded)
        return chosen

    def roles_of(self, path: str, functions: Functions) -> NDArray[np.uint8]:
        """ROLE_* of each function of a module, u1."""
        found = np.zeros(len(functions.rvas), np.uint8)
        match = _Matcher(PurePath(path).name, functions)
        for role, rule in self.roles:
            if rule.glob.matches_module(path):
                found[match.any_of([rule])] |= role
        return found

    def for_python(self) -> str:
        """The function rules as the recorder of Python calls reads them: a line each, + or -, module, tab, name."""
        marked = [("+", rule) for rule in self.functions] + [("-", rule) for rule in self.excludes]
        return "\n".join(
            f"{mark}{rule.glob.module or ''}\t{rule.glob.name}" for mark, rule in marked if rule.address is None
        )

    def saw_python(self, functions: Iterable[tuple[str, str, str]]) -> None:
        """Note what rules functions of Python match: (module, file, name) each. What was excluded nobody tells."""
        known = list(functions)
        for rule in self.functions:
            rule.matched = rule.matched or any(rule.fits_python(*function) for function in known)
        for rule in self.excludes:
            rule.matched |= bool(known)

    def unmatched(self) -> list[str]:
        """The rules that have matched nothing so far, as options a user typed."""
        modules = [f"--module {text}" for text in self.modules if text not in self._seen_modules and text != ALL]
        functions = [f"--function {rule.text}" for rule in self.functions if not rule.matched]
        excludes = [f"--exclude {rule.text}" for rule in self.excludes if not rule.matched]
        names = {ROLE_TRIGGER: "--trigger", ROLE_UNDER: "--under", ROLE_CALLER: "--caller"}
        roles = [f"{names[role]} {rule.text}" for role, rule in self.roles if not rule.matched]
        return modules + functions + excludes + roles

    def _function_rules(self, path: str, by_module_rule: bool) -> list[FunctionRule]:
        """The function rules that choose in this module: those that name it, the others only if a module rule does."""
        return [
            rule for rule in self.functions if (rule.glob.module or by_module_rule) and rule.glob.matches_module(path)
        ]

    def _module_rule(self, path: str, is_main: bool) -> bool:
        is_folded = not self.interpreter_frames and is_interpreter(path)
        if not self.modules:
            return (is_main and not is_folded) or is_instrumented(path)
        broad = (ALL, MAIN) if is_main else (ALL,)
        found = [t for t in self.modules if (t in broad and not is_folded) or module_matches(t, path)]
        self._seen_modules.update(found)
        return bool(found)


class _Matcher:
    """Applies rules to one module's functions; asks for names only when a rule needs them."""

    def __init__(self, module: str, functions: Functions) -> None:
        self.module = module
        self.functions = functions
        self._names: list[tuple[str, ...]] | None = None

    def any_of(self, rules: list[FunctionRule]) -> NDArray[np.bool_]:
        """A bool for each function: whether any rule matches it. Parts follow the function that owns them."""
        found = np.zeros(len(self.functions.rvas), bool)
        for rule in rules:
            matches = self._match(rule)
            rule.matched |= bool(matches.any())
            found |= matches
        found |= found[self.functions.owners]
        return found

    def _match(self, rule: FunctionRule) -> NDArray[np.bool_]:
        functions = self.functions
        if rule.ordinal is not None:
            entries = functions.entries()
            return self._around(entries[rule.ordinal : rule.ordinal + 1])
        if rule.address is None:
            matches = rule.glob.matches_name
            return np.fromiter((any(map(matches, names)) for names in self.names), bool, len(functions.rvas))
        return self._around({rule.address, rule.address - functions.base})

    def _around(self, addresses: Iterable[int]) -> NDArray[np.bool_]:
        """Which functions any of these relative addresses lies in."""
        functions = self.functions
        found = np.zeros(len(functions.rvas), bool)
        for address in addresses:
            if not 0 <= address < 1 << 62:
                continue
            offset = np.int64(address) - functions.rvas.astype(np.int64)
            found |= (offset >= 0) & (offset < np.maximum(functions.sizes.astype(np.int64), 1))
        return found

    @property
    def names(self) -> list[tuple[str, ...]]:
        """The names that each function answers to."""
        if self._names is None:
            stable = [f"{self.module}+0x{rva:x}" for rva in self.functions.rvas.tolist()]
            self._names = [
                (other,) if name is None else (name, other)
                for name, other in zip(self.functions.names(), stable, strict=True)
            ]
        return self._names


def read_exclude_file(path: Path) -> list[FunctionRule]:
    """The rules of a file, one a line; `#` at a line's start makes it a comment. Raises UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"cannot read the exclude file {path}: {reason}; give a text file of one rule a line"
        ) from None
    return [FunctionRule.parse(line) for line in map(str.strip, lines) if line and not line.startswith("#")]

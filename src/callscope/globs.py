"""Globs that choose functions and modules, as every command understands them.

`cmd_*` matches names, `git!cmd_*` only those of a module. Globs are those of the shell: `*`, `?`, `[abc]`,
case-sensitive. A module's version may be left out: `libstdc++.so.6` matches libstdc++.so.6.0.30. C++ and Rust functions
match with or without their parameter list.
"""

from __future__ import annotations

import fnmatch
import re
from pathlib import PurePath

_AFTER_PARAMETERS = re.compile(r"\)( const| volatile| &&?| noexcept| \[[^\[\]]*\])*$")


def split_glob(text: str) -> tuple[str | None, str]:
    """The module glob, or None, and the name glob of `MODULE!NAME` or `NAME`."""
    module, mark, name = text.partition("!")
    if not mark or module.endswith("operator"):  # C++ has operators called ! and !=
        return None, text.strip()
    return module, name.strip()


def module_matches(glob: str, path: str) -> bool:
    """Whether a module glob matches a module's path, file name, or file name without its version."""
    name = PurePath(path).name
    return any(fnmatch.fnmatchcase(text, glob) for text in (name, path)) or fnmatch.fnmatchcase(name, glob + ".[0-9]*")


def without_parameters(name: str) -> str:
    """A demangled name without its parameter list and what follows it: `f(int) const` is `f`.

    A parenthesis that belongs to the name stays: `operator()(int)` is `operator()`, `(anonymous namespace)::f(int)` is
    `(anonymous namespace)::f`.
    """
    tail = _AFTER_PARAMETERS.search(name)
    if tail is None:
        return name
    end = tail.start()
    depth = 0
    for index in range(end, -1, -1):
        depth += (name[index] == ")") - (name[index] == "(")
        if depth == 0:
            head = name[:index]
            return name if not head or head.endswith(("operator", "::", " ")) else head
    return name


class NameGlob:
    """A compiled `NAME` or `MODULE!NAME` glob. A name that equals the glob's text always matches (C++ uses `[]*?`)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.module, self.name = split_glob(text)
        self._pattern = re.compile(fnmatch.translate(self.name))

    def matches_module(self, path: str) -> bool:
        """Whether functions of the module may match."""
        return self.module is None or module_matches(self.module, path)

    def matches_name(self, name: str) -> bool:
        """Whether the name of a function matches."""
        return (
            name == self.name
            or self._pattern.match(name) is not None
            or ("(" in name and self._pattern.match(without_parameters(name)) is not None)
        )

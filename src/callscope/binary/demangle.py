"""Readable names of C++ and Rust symbols.

Itanium C++, Microsoft C++ and Rust v0 names are read by LLVM's demanglers (the package pycxxfilt: symbolic's Python
binding offers no demangling), Rust's older scheme here. A name can be made to unfold to gigabytes, or to nest deeper
than the stack, and the demanglers do not guard against either: long names and those with many back references, a few in
10,000, are read by a child process with limits.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pycxxfilt

LONGEST_NAME = 16384
LONGEST_RESULT = 4096
_SAFE_LENGTH = 1000
_SAFE_REFERENCES = 16
_MOST_WORKERS = 4
_WORKER_SECONDS = 2
_WORKER_BYTES = 1 << 29

# Itanium: S_ S0_ T_ ...; Rust v0: B_ B0_ ... Letters of identifiers are counted too, which only costs time.
_REFERENCE = re.compile(r"[STB][0-9A-Za-z]*_")
_MICROSOFT_REFERENCE = re.compile(r"\d")
_MICROSOFT_CALL = re.compile(r"(?:^| )__(?:cdecl|thiscall|stdcall|fastcall|vectorcall|clrcall) ")
_MICROSOFT_KEYWORD = re.compile(r"\b(?:class|struct|union|enum) ")
_NO_PARAMETERS = re.compile(r"\(void\)(?=(?: const| volatile| noexcept| &&?)*$)")
_SUFFIX = re.compile(r"(?:\.[A-Za-z_][A-Za-z0-9_]*|\.\d+)+$")
_RUST_HASH = re.compile(r"h[0-9a-f]{16}$")
_RUST_ESCAPE = re.compile(r"\$(?:([A-Z]{1,2})|u([0-9a-f]{1,6}))\$")
_RUST_MARKS = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}

_WORKER = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_WORKER_BYTES}, {_WORKER_BYTES}))
resource.setrlimit(resource.RLIMIT_CPU, ({_WORKER_SECONDS}, {_WORKER_SECONDS}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path.insert(0, sys.argv[1])
import pycxxfilt
for name in sys.stdin.read().split(chr(0)):
    try:
        found = pycxxfilt.demangle(name) or name
    except ValueError:
        found = name
    sys.stdout.write((found if len(found) <= {LONGEST_RESULT} else name) + chr(0))
    sys.stdout.flush()
"""


def demangle(names: Sequence[str]) -> list[str]:
    """For each name what it says in C++ or Rust; itself when it is not mangled or cannot be read.

    What compilers append to clones stays, as in `f(int) [clone .constprop.0]`.
    """
    found = list(names)
    doubtful: dict[int, tuple[str, str]] = {}
    for index, name in enumerate(names):
        if not name.startswith(("_Z", "_R", "?")) or len(name) > LONGEST_NAME:
            continue
        rust = _demangle_old_rust(name)
        if rust is not None:
            found[index] = rust
            continue
        stem, suffix = _split_suffix(name)
        reference = _MICROSOFT_REFERENCE if stem.startswith("?") else _REFERENCE
        if len(stem) > _SAFE_LENGTH or len(reference.findall(stem)) > _SAFE_REFERENCES:
            doubtful[index] = (stem, suffix)
            continue
        try:
            found[index] = _joined(pycxxfilt.demangle(stem) or stem, stem, suffix)
        except ValueError:
            continue
    if doubtful:
        stems = _demangle_apart([stem for stem, _ in doubtful.values()])
        for (index, (stem, suffix)), text in zip(doubtful.items(), stems, strict=True):
            found[index] = _joined(text, stem, suffix)
    return found


def _split_suffix(name: str) -> tuple[str, str]:
    """Split what a compiler appended (.cold, .isra.0, .llvm.123) off a mangled name."""
    match = None if name.startswith("?") else _SUFFIX.search(name)
    return (name, "") if match is None else (name[: match.start()], match[0])


def _joined(text: str, stem: str, suffix: str) -> str:
    if text == stem or len(text) > LONGEST_RESULT:
        return stem + suffix
    if stem.startswith("?"):
        return _as_itanium(text)
    return f"{text} [clone {suffix}]" if suffix else text


def _as_itanium(text: str) -> str:
    """A Microsoft name as others are shown: `A::f(int)` for `public: virtual int __cdecl A::f(int)`."""
    for match in _MICROSOFT_CALL.finditer(text):
        before = text[: match.start()]
        if before.count("(") == before.count(")") and before.count("<") == before.count(">"):
            text = text[match.end() :]
            break
    return _NO_PARAMETERS.sub("()", _MICROSOFT_KEYWORD.sub("", text))


def _demangle_old_rust(name: str) -> str | None:
    """Rust's first scheme: the C++ form of a path whose last element is a hash, with escapes in its elements.

    None for other names. Source: rustc's "legacy" symbol mangling, as its documentation describes it.
    """
    if not name.startswith("_ZN"):
        return None
    elements, at = [], 3
    while at < len(name) and name[at].isdecimal():
        digits = at
        while at < len(name) and name[at].isdecimal():
            at += 1
        if at - digits > 5:
            return None
        end = at + int(name[digits:at])
        elements.append(name[at:end])
        at = end
    rest = name[at:]
    if len(elements) < 2 or not _RUST_HASH.match(elements[-1]) or not (rest == "E" or rest.startswith("E.")):
        return None
    return "::".join(_unescape(element) for element in elements[:-1])


def _unescape(element: str) -> str:
    """One path element of Rust's first scheme: `$LT$` and the like, `..` for `::`."""
    if element.startswith("_$"):
        element = element[1:]

    def mark(match: re.Match[str]) -> str:
        if match[1]:
            return _RUST_MARKS.get(match[1], match[0])
        code = int(match[2], 16)
        return chr(code) if code < 0x110000 and chr(code).isprintable() else match[0]

    return _RUST_ESCAPE.sub(mark, element).replace("..", "::")


def _demangle_apart(names: list[str]) -> list[str]:
    """Demangle in a child process. A name it dies of stays as it is; after a few of those, so do all that follow."""
    found: list[str] = []
    package = str(Path(pycxxfilt.__file__).parents[1])
    for _ in range(_MOST_WORKERS):
        rest = names[len(found) :]
        if not rest:
            break
        try:
            process = subprocess.run(
                [sys.executable, "-S", "-c", _WORKER, package],
                input="\0".join(rest).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=4 * _WORKER_SECONDS,
                check=False,
            )
            answer = process.stdout
        except subprocess.TimeoutExpired as expired:
            answer = expired.stdout or b""
        except OSError:
            break
        found += answer.decode("utf-8", "replace").split("\0")[:-1][: len(rest)]
        if len(found) < len(names):
            found.append(names[len(found)])
    return found + names[len(found) :]

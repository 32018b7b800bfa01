#!/usr/bin/env python3
"""Every check that runs no program of ours: style, types, generated files.

`python tools/check.py` prints what differs from the house style, and its exit status is 1 when anything does.
`python tools/check.py --fix` first reformats, sorts imports, generates.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ["src", "tests", "benchmarks", "tools", "format", "native", "hatch_build.py"]


def c_sources() -> list[str]:
    """Every C file that a person writes: the generated header is left as its generator makes it."""
    files = [
        path for part in ("native/**/", "tests/**/") for pattern in ("*.c", "*.h") for path in ROOT.glob(part + pattern)
    ]
    return sorted(str(path.relative_to(ROOT)) for path in files if path.name != "records.h")


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a tool of this Python's environment."""
    return [sys.executable, "-m", name, *arguments]


def steps(fix: bool) -> list[tuple[str, list[str]]]:
    """Names and commands, in order."""
    clang_format = [str(Path(sys.executable).parent / "clang-format"), "--style=file"]
    mending = [
        ("generate", [sys.executable, "format/generate.py"]),
        ("format", module("ruff", "format", "-q", *PYTHON)),
        ("sort and mend", module("ruff", "check", "-q", "--fix-only", *PYTHON)),
        ("format C", [*clang_format, "-i", *c_sources()]),
    ]
    checking = [
        ("generated files", [sys.executable, "format/generate.py", "--check"]),
        ("ruff", module("ruff", "check", "-q", *PYTHON)),
        ("format", module("ruff", "format", "-q", "--check", *PYTHON)),
        ("C format", [*clang_format, "--dry-run", "-Werror", *c_sources()]),
        ("types", module("mypy")),
    ]
    return (mending if fix else []) + checking


def main() -> int:
    """Run every step, even after one failed; the exit status."""
    failed = [name for name, command in steps("--fix" in sys.argv[1:]) if subprocess.run(command, cwd=ROOT).returncode]
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

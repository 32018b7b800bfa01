"""Compiles test programs with gcc and with clang (zig cc), for Linux and Windows, each once per set of flags."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TARGETS = Path(__file__).resolve().parent.parent / "targets"
COMPILERS = ("gcc", "zig")
WINDOWS_COMPILERS = ("mingw", "zig-windows")
# Undefined behaviour would be trapped by zig's defaults, at a cost in size; -g keeps symbols with -Os. What compilers
# warn of is not the tests' matter.
ZIG_FLAGS = ["-fno-sanitize=undefined", "-Wno-everything", "-g"]
GCC_FLAGS = ["-w"]
MINGW = {"c": "x86_64-w64-mingw32-gcc", "c++": "x86_64-w64-mingw32-g++"}


def compiler_command(compiler: str, language: str) -> list[str]:
    """The command of `compiler` for `language` "c" or "c++"."""
    if compiler.startswith("zig"):
        target = ["-target", "x86_64-windows-gnu"] if compiler == "zig-windows" else []
        return [sys.executable, "-m", "ziglang", "c++" if language == "c++" else "cc", *target, *ZIG_FLAGS]
    if compiler == "mingw":
        return [MINGW[language], "-static", *GCC_FLAGS]
    return ["g++" if language == "c++" else "gcc", *GCC_FLAGS]


def have(*programs: str) -> bool:
    """Whether all these programs are installed."""
    return all(shutil.which(program) for program in programs)


def compile_program(sources: Sequence[Path], output: Path, flags: Sequence[str], compiler: str = "gcc") -> Path:
    """`output`, built from C or C++ sources (by the first one's suffix), unless that same build is there already.

    Raises AssertionError with the compiler's words when it refuses.
    """
    language = "c++" if sources[0].suffix == ".cpp" else "c"
    inputs = [path for path in flags if path.endswith((".o", ".a", ".so"))]
    command = [*compiler_command(compiler, language), f"-I{TARGETS}", *flags]
    headers = sorted(TARGETS.glob("*.h"))
    digest = hashlib.sha256(repr(command).encode())
    for path in [*sources, *headers, *map(Path, inputs)]:
        digest.update(path.read_bytes())
    stamp = output.with_name(output.name + ".stamp")
    if output.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    # A PDB is named after the program, and found by that name.
    temporary = output if compiler == "zig-windows" else output.with_name(f"{output.name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", str(temporary), *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[:3000]}"
    temporary.rename(output)
    stamp.write_text(digest.hexdigest())
    return output

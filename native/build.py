"""Compile every native part with the pinned compiler (`python -m ziglang cc`): no system compiler is needed.

The wheel's build hook and the developer set-up both call `build`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
GLIBC = "x86_64-linux-gnu.2.17"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


@dataclass(frozen=True)
class Library:
    """One shared library: its file name, its sources below native/, and the flags that are its own."""

    name: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]


LIBRARIES = (
    # Loaded into the target: no C library, no floating point registers, nothing that could be traced itself.
    Library(
        "libcallscope-agent.so",
        ("agent/core/*.c", "agent/linux/*.c", "agent/linux/*.S"),
        (
            "-O2",
            "-mgeneral-regs-only",
            "-ffreestanding",
            "-fno-builtin",
            "-fno-stack-protector",
            "-fno-sanitize=all",
            "-fvisibility=hidden",
            "-fasynchronous-unwind-tables",
            "-nostdlib",
            "-Wl,-z,initfirst",
            "-Wl,-z,now",
            "-Wl,--build-id",
        ),
    ),
    # Loaded into callscope's own Python.
    Library("libcallscope-kernel.so", ("kernel/*.c",), ("-O3", "-fno-sanitize=all", "-fvisibility=hidden")),
)


def writable(directory: Path) -> bool:
    """Whether files can be made in `directory`, which is made when it is missing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


@contextmanager
def compiler_environment() -> Iterator[dict[str, str]]:
    """The environment for the compiler, which fails when it has nowhere to keep its cache.

    Build services run without a home directory, or with one that cannot be written: they get a cache for one build.
    """
    environment = dict(os.environ)
    if "ZIG_GLOBAL_CACHE_DIR" in environment:
        yield environment
        return
    home = environment.get("XDG_CACHE_HOME") or (environment.get("HOME") and environment["HOME"] + "/.cache")
    if home and writable(Path(home) / "zig"):
        yield environment
        return
    with tempfile.TemporaryDirectory(prefix="callscope-build-") as directory:
        yield environment | {"ZIG_GLOBAL_CACHE_DIR": directory, "ZIG_LOCAL_CACHE_DIR": directory}


def build(output: Path) -> list[Path]:
    """Compile every library into the directory `output`; the files written.

    Raises subprocess.CalledProcessError when the compiler refuses.
    """
    output.mkdir(parents=True, exist_ok=True)
    with compiler_environment() as environment:
        return compile_all(output, environment)


def compile_all(output: Path, environment: dict[str, str]) -> list[Path]:
    """Compile every library that has sources, each replaced at once: programs may have the old one loaded."""
    built = []
    for library in LIBRARIES:
        sources = [str(path) for pattern in library.sources for path in sorted(NATIVE.glob(pattern))]
        if not sources:
            continue
        target = output / library.name
        command = [sys.executable, "-m", "ziglang", "cc", "-target", GLIBC, "-std=c11", "-shared", "-fPIC", "-g"]
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        command += [*WARNINGS, *library.flags, f"-I{NATIVE / 'include'}", "-o", str(partial), *sources]
        try:
            subprocess.run(command, check=True, env=environment)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        built.append(target)
    return built


if __name__ == "__main__":
    for path in build(NATIVE.parent / "src/callscope/lib"):
        print(path.relative_to(NATIVE.parent))

"""Compile every native part with the pinned compiler (`python -m ziglang cc`): no system compiler is needed.

The wheel's build hook and the developer set-up both call `build`.
"""

from __future__ import annotations

import subprocess
import sys
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


def build(output: Path) -> list[Path]:
    """Compile every library into the directory `output`; the files written.

    Raises subprocess.CalledProcessError when the compiler refuses.
    """
    output.mkdir(parents=True, exist_ok=True)
    built = []
    for library in LIBRARIES:
        sources = [str(path) for pattern in library.sources for path in sorted(NATIVE.glob(pattern))]
        if not sources:
            continue
        target = output / library.name
        command = [sys.executable, "-m", "ziglang", "cc", "-target", GLIBC, "-std=c11", "-shared", "-fPIC", "-g"]
        command += [*WARNINGS, *library.flags, f"-I{NATIVE / 'include'}", "-o", str(target), *sources]
        subprocess.run(command, check=True)
        built.append(target)
    return built


if __name__ == "__main__":
    for path in build(NATIVE.parent / "src/callscope/lib"):
        print(path.relative_to(NATIVE.parent))

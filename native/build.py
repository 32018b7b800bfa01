"""Compile every native part with the pinned compiler (`python -m ziglang cc`): no system compiler is needed.

The wheel's build hook and the developer set-up both call `build`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
GLIBC = "x86_64-linux-gnu.2.17"
WINDOWS = "x86_64-windows-gnu"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
PT_DYNAMIC = 2
DT_FLAGS_1 = 0x6FFFFFFB
DF_1_INITFIRST = 0x20


# Types and constants of systems for code that links no C library: `-nostdlib` hides the compiler's own copy of them.
LINUX_HEADERS = ("x86-linux-gnu", "generic-glibc", "x86-linux-any", "any-linux-any")
WINDOWS_HEADERS = ("any-windows-any",)

# For code in the target: no C library, no floating point registers, nothing that could be traced itself.
BARE = (
    "-O2",
    "-mcpu=x86_64-sse-sse2-mmx",  # -mgeneral-regs-only does not keep this compiler from vectorising
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-fvisibility=hidden",
    "-fasynchronous-unwind-tables",
    "-nostdlib",
)


@dataclass(frozen=True)
class Binary:
    """One library or program: its file name, its sources below native/, and the flags that are its own. `copies`: other
    names that it acts by."""

    name: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]
    target: str = GLIBC
    headers: tuple[str, ...] = ()
    initialised_first: bool = False
    copies: tuple[str, ...] = ()


BINARIES = (
    Binary(
        "libcallscope-agent.so",
        ("agent/core/*.c", "agent/linux/*.c", "agent/linux/*.S"),
        ("-shared", "-fPIC", "-g", *BARE, "-D_GNU_SOURCE", "-Wl,-z,now", "-Wl,--build-id"),
        headers=LINUX_HEADERS,
        initialised_first=True,
        copies=("libcalltrace.so",),
    ),
    # Preloaded beside the agent where Python is to be recorded: looks everything up by name when it is loaded.
    Binary(
        "libcallscope-python.so",
        ("python/calls/*.c",),
        (
            "-shared",
            "-fPIC",
            "-g",
            "-O2",
            "-D_GNU_SOURCE",
            "-fno-sanitize=all",
            "-fvisibility=hidden",
            "-fomit-frame-pointer",
            "-ldl",
        ),
    ),
    Binary(
        "callscope-agent.dll",
        ("agent/core/*.c", "agent/windows/*.c", "agent/windows/*.S", "inject/*.[cS]"),
        ("-shared", "-s", *BARE, "-lntdll", "-lkernel32"),
        target=WINDOWS,
        headers=WINDOWS_HEADERS,
    ),
    Binary(
        "callscope-launcher.exe",
        ("launcher/*.c", "inject/*.[cS]", "agent/core/memory.c"),
        ("-s", "-Wl,--subsystem,console", "-Wl,--entry,mainCRTStartup", *BARE, "-lkernel32"),
        target=WINDOWS,
        headers=WINDOWS_HEADERS,
    ),
    # Loaded into the Python that runs a program whose bytecode is recorded, whichever version it is.
    Binary(
        "libcallscope-bytecode.so",
        ("python/bytecode*.c",),
        ("-shared", "-fPIC", "-g", "-O2", "-fno-sanitize=all", "-fvisibility=hidden", "-lpthread", "-ldl"),
    ),
    # Loaded into callscope's own Python.
    Binary(
        "libcallscope-kernel.so",
        ("kernel/*.c",),
        ("-shared", "-fPIC", "-g", "-O3", "-fno-sanitize=all", "-fvisibility=hidden"),
    ),
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


def header_flags(names: tuple[str, ...]) -> list[str]:
    """Where the compiler keeps these headers of systems."""
    if not names:
        return []
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the compiler is missing: pip install ziglang")
    include = Path(spec.submodule_search_locations[0]) / "lib/libc/include"
    return [flag for name in names for flag in ("-isystem", str(include / name))]


def mark_initialised_first(path: Path) -> None:
    """Ask the loader to run a library's constructors before all others: `-z initfirst`, which zig does not know.

    Sets DF_1_INITFIRST in the DT_FLAGS_1 entry that `-z now` made. Layouts: System V gABI, "Program Header" and
    "Dynamic Section"; the flag: Oracle Linker and Libraries Guide, "Dynamic Section".
    """
    data = bytearray(path.read_bytes())
    table, entry_size, entries = struct.unpack_from("<32xQ14xHH", data)
    for header in range(table, table + entry_size * entries, entry_size):
        kind, offset, size = struct.unpack_from("<I4xQ16xQ", data, header)
        if kind != PT_DYNAMIC:
            continue
        for entry in range(offset, offset + size, 16):
            tag, value = struct.unpack_from("<QQ", data, entry)
            if tag == DT_FLAGS_1:
                struct.pack_into("<QQ", data, entry, tag, value | DF_1_INITFIRST)
                path.write_bytes(data)
                return
    raise SystemExit(f"{path} has no DT_FLAGS_1 entry to mark")


def build(output: Path) -> list[Path]:
    """Compile everything into the directory `output`; the files written.

    Raises subprocess.CalledProcessError when the compiler refuses.
    """
    output.mkdir(parents=True, exist_ok=True)
    with compiler_environment() as environment:
        return [*compile_all(output, environment), *copy_package(output)]


def copy_package(output: Path) -> list[Path]:
    """What programs that are built with callscope need: the C header, and the files of CMake and pkg-config."""
    wanted = {NATIVE / "include" / name: output / "include" / name for name in ("callscope.h", "callscope-hooks.c")}
    package = NATIVE / "package"
    wanted |= {path: output / path.relative_to(package) for path in package.rglob("*.*") if path.is_file()}
    version = package_version()
    for source, target in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("@VERSION@", version))
    return list(wanted.values())


def package_version() -> str:
    """What the Python package calls itself: the one place that says it."""
    found = re.search(
        r'^__version__ = "([^"]+)"$', (NATIVE.parent / "src/callscope/__init__.py").read_text(), re.MULTILINE
    )
    if found is None:
        raise SystemExit("src/callscope/__init__.py has no __version__")
    return found[1]


def compile_all(output: Path, environment: dict[str, str]) -> list[Path]:
    """Compile everything, each file replaced at once: programs may have the old one loaded."""
    built = []
    for binary in BINARIES:
        sources = [str(path) for pattern in binary.sources for path in sorted(NATIVE.glob(pattern))]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", binary.target, "-std=c11"]
        command += [*WARNINGS, *binary.flags, f"-I{NATIVE / 'include'}", *header_flags(binary.headers)]
        with tempfile.TemporaryDirectory(prefix="build-", dir=output) as directory:
            partial = Path(directory) / binary.name
            subprocess.run([*command, "-o", str(partial), *sources], check=True, env=environment)
            if binary.initialised_first:
                mark_initialised_first(partial)
            for copy in binary.copies:
                shutil.copyfile(partial, partial.with_name(copy))
                built.append(partial.with_name(copy).replace(output / copy))
            built.append(partial.replace(output / binary.name))
    return built


if __name__ == "__main__":
    for path in build(NATIVE.parent / "src/callscope/lib"):
        print(path.relative_to(NATIVE.parent))

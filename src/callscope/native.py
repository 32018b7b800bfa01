"""Finds and loads the native libraries that the build put beside this package."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from callscope.errors import NativeError

LIBRARY_DIRECTORY = Path(__file__).resolve().parent / "lib"
AGENT_NAME = "libcallscope-agent.so"
PYTHON_NAME = "libcallscope-python.so"
DROPIN_NAME = "libcalltrace.so"
KERNEL_NAME = "libcallscope-kernel.so"
WINDOWS_AGENT_NAME = "callscope-agent.dll"
LAUNCHER_NAME = "callscope-launcher.exe"


def library_path(name: str) -> Path:
    """The absolute path of a native library; NativeError when the build did not produce it."""
    path = LIBRARY_DIRECTORY / name
    if not path.is_file():
        raise NativeError(f"{name} is missing from {LIBRARY_DIRECTORY}: reinstall callscope")
    return path


@cache
def kernel() -> ctypes.CDLL:
    """The kernel library: plain C over flat arrays, called with pointers to NumPy data."""
    return ctypes.CDLL(str(library_path(KERNEL_NAME)))


@contextmanager
def signals_held() -> Iterator[None]:
    """Within the block, signals that would end this process are kept for the program: `forward_signals` says which."""
    if kernel().cs_forward_begin() != 0:
        raise NativeError("signal handlers cannot be installed: run callscope outside a sandbox that forbids it")
    try:
        yield
    finally:
        kernel().cs_forward_end()


def forward_signals(pid: int) -> None:
    """Give the program the signals held back so far, and those still to come. Within `signals_held` only."""
    kernel().cs_forward_to(pid)

"""`callscope.capture`: a program of Python captures its own stack."""

from __future__ import annotations

import ctypes
from functools import cache


def capture(tag: int = 0) -> None:
    """Record this thread's call stack, with `tag` (0 to 2^64 - 1). Does nothing when this process is not recorded."""
    function = _function()
    if function is not None:
        function(tag)


@cache
def _function() -> ctypes._NamedFuncPointer | None:
    """What the agent exports; None when it is not in this process."""
    try:
        function = ctypes.PyDLL(None).callscope_capture
    except (AttributeError, OSError, TypeError):
        return None
    function.argtypes = [ctypes.c_uint64]
    function.restype = None
    return function

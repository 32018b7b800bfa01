"""The processor's time-stamp counter against the system's clocks, read at one moment."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from callscope.errors import NativeError
from callscope.native import kernel


@dataclass(frozen=True)
class ClockPair:
    """One moment on three clocks: `tsc` in ticks, `monotonic_ns` and `realtime_ns` (since 1970) in nanoseconds."""

    tsc: int
    monotonic_ns: int
    realtime_ns: int


def counter_ns(readings: int = 20_000) -> float:
    """Nanoseconds that reading the processor's time-stamp counter takes, the least of some tries."""
    function = kernel().cs_counter_cost
    function.restype = ctypes.c_uint64
    return min(int(function(ctypes.c_uint64(readings))) for _ in range(5)) / readings


def clock_pair() -> ClockPair:
    """The present moment, the three values within some tens of nanoseconds.

    Raises NativeError when the system has no such clock.
    """
    values = (ctypes.c_uint64 * 3)()
    if kernel().cs_clock_pair(values) != 0:
        raise NativeError("the system's monotonic or real-time clock cannot be read: check the kernel's clock sources")
    return ClockPair(values[0], values[1], values[2])

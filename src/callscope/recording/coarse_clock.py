"""Keeps the coarse clock of a session: a word of the events file, which programs read, not the processor's counter.

It costs them next to nothing where reading the counter costs ten nanoseconds or more, and this process a few hundredths
of a processor.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from callscope import format as records
from callscope.native import kernel
from callscope.recording.session import Session

INTERVAL_NS: Final = 100_000
"""between two ticks; what a loaded machine makes of it is in the trace"""


class _Ticking(ctypes.Structure):
    """struct cs_ticking of native/kernel/clock.c."""

    _fields_ = tuple(
        (name, kind)
        for name, kind in (
            ("clock", ctypes.c_void_p),
            ("interval_ns", ctypes.c_uint64),
            ("stop", ctypes.c_uint64),
            ("ticks", ctypes.c_uint64),
            ("longest", ctypes.c_uint64),
        )
    )


class CoarseClock:
    """Moves the clock of an events file on, in a thread, while in its context; sessions with another clock are left
    alone.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ticking = _Ticking(interval_ns=INTERVAL_NS)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> CoarseClock:
        if self._session.state["features"] & records.FEATURE_COARSE_CLOCK:
            started = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(started,), daemon=True, name="coarse-clock")
            self._thread.start()
            started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._ticking.stop = 1
            self._thread.join()
            with suppress(OSError):  # a full disk
                self._session.update(lambda state: state["clock"].update(coarse=self.figures()))

    def figures(self) -> dict[str, Any]:
        """For session.json: the interval in nanoseconds, how often it ticked, and the longest interval in ticks of the
        processor's counter.
        """
        return {
            "interval_ns": INTERVAL_NS,
            "ticks": int(self._ticking.ticks),
            "longest_ticks": int(self._ticking.longest),
        }

    def _run(self, started: threading.Event) -> None:
        try:
            with (
                suppress(OSError, ValueError),
                self._session.events.open("r+b") as file,
                mmap.mmap(file.fileno(), records.EVENTS_HEADER_BYTES) as memory,
            ):
                word = ctypes.c_uint64.from_buffer(memory, records.EVENTS_CLOCK)
                self._ticking.clock = ctypes.addressof(word)
                started.set()
                kernel().cs_tick(ctypes.byref(self._ticking))
                del word  # the mapping cannot be closed while it is looked at
        finally:
            started.set()

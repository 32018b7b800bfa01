"""Answers the questions of agents on Windows and under Wine, which have no local sockets in common with us: by files.

An agent writes NAME.ask, a `request` record and its `request_module` records, and waits for NAME.reply, a `reply`
record for each module (format/schema.toml). It may look while we write: the reply appears whole, under its name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from callscope import format as records
from callscope.recording.plans import Answer, Module
from callscope.recording.scratch import Scratch
from callscope.recording.server import MOST_MODULES, decode_module, encode_reply

INTERVAL = 0.002
"""seconds between looks: a program waits so long for the plans of what it loads"""
ASK, REPLY = ".ask", ".reply"
STATUS = "status"
"""file that the launcher leaves: the program's exit status, u32"""


class Mailbox:
    """Watches a directory while the `with` block runs. Every question has a thread; none outlives its process."""

    def __init__(self, answer: Callable[[Module], Answer | None]) -> None:
        self._answer = answer
        self._scratch = Scratch()
        self.directory = self._scratch.path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="callscope-mailbox", daemon=True)

    def __enter__(self) -> Mailbox:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._scratch.remove()

    def status(self) -> int | None:
        """With which of Windows' 32-bit exit statuses the program ended; None when nobody told."""
        with suppress(OSError):
            data = (self.directory / STATUS).read_bytes()
            return int.from_bytes(data, "little") if len(data) == 4 else None
        return None

    def _watch(self) -> None:
        begun: set[str] = set()
        while not self._ended.wait(INTERVAL):
            with suppress(OSError), os.scandir(self.directory) as entries:
                for path in [Path(entry.path) for entry in entries if entry.name.endswith(ASK)]:
                    if path.name in begun or (modules := read_question(path)) is None:
                        continue
                    begun.add(path.name)
                    threading.Thread(
                        target=self._reply, args=(path, modules), name="callscope-reply", daemon=True
                    ).start()

    def _reply(self, question: Path, modules: list[Module]) -> None:
        reply = b"".join(encode_reply(self._answer(module)) for module in modules)
        partial = question.with_suffix(".tmp")
        with suppress(OSError):  # the directory may be gone
            partial.write_bytes(reply)
            partial.replace(question.with_suffix(REPLY))
            question.unlink()


def read_question(path: Path) -> list[Module] | None:
    """The modules asked about; None while the file is not complete, or when it is nonsense."""
    data = path.read_bytes()
    head, each = records.REQUEST.itemsize, records.REQUEST_MODULE.itemsize
    if len(data) < head:
        return None
    request = np.frombuffer(data, records.REQUEST, 1)[0]
    count = int(request["module_count"])
    known = request["magic"] == records.REQUEST_MAGIC and request["version"] == records.REQUEST_VERSION
    if not known or count > MOST_MODULES or len(data) != head + count * each:
        return None
    modules = np.frombuffer(data, records.REQUEST_MODULE, count, head)
    return [decode_module(module, int(request["pid"])) for module in modules]

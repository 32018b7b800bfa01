"""Answers the agents' questions about modules, over a local socket in a directory only this user can enter.

A connection carries any number of requests, each a `request` record and its `request_module` records; one `reply`
record comes back for each module, in order, as soon as it is known (format/schema.toml).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

import numpy as np

from callscope import format as records
from callscope.errors import RecordError
from callscope.recording.plans import Answer, Module
from callscope.recording.scratch import Scratch

MOST_MODULES = 4096
PLAN_SKIP = bytes(records.REPLY.itemsize)


class Server:
    """Listens while the `with` block runs. Every connection has a thread; none outlives its process."""

    def __init__(self, answer: Callable[[Module], Answer | None], finish: Callable[[], None] | None = None) -> None:
        """`finish` is called when a program asks about no module at all: it is about to end, and waits."""
        self._answer = answer
        self._finish = finish
        self._scratch = Scratch()
        self.path = self._scratch.path / "recorder"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="callscope-server", daemon=True)

    @property
    def directory(self) -> Path:
        """The private directory, gone when the server is."""
        return self._scratch.path

    def __enter__(self) -> Server:
        try:
            self._socket.bind(str(self.path))
            self._socket.listen(socket.SOMAXCONN)
        except OSError as error:
            self.close()
            raise RecordError(f"cannot listen at {self.path}: {error.strerror}; set TMPDIR to another place") from None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, hang up, remove the directory."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._scratch.remove()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            self._begin(connection, False)

    def serve(self, connection: socket.socket) -> None:
        """Answer over a connection that is there already, to a process that cannot open files: they go with answers."""
        with self._lock:
            self._connections.add(connection)
        self._begin(connection, True)

    def _begin(self, connection: socket.socket, hands: bool) -> None:
        threading.Thread(target=self._serve, args=(connection, hands), name="callscope-client", daemon=True).start()

    def _serve(self, connection: socket.socket, hands: bool) -> None:
        """Read questions and let another thread answer them: the agent may ask all before it reads an answer."""
        questions: SimpleQueue[Module | None] = SimpleQueue()
        replier = threading.Thread(
            target=self._reply, args=(connection, hands, questions), name="callscope-reply", daemon=True
        )
        replier.start()
        with connection:
            with suppress(OSError):
                while (count := read_request(connection, questions)) is not None:
                    if count == 0 and self._finish is not None:
                        self._finish()
                        connection.sendall(b"\1")
            questions.put(None)
            replier.join()
        with self._lock:
            self._connections.discard(connection)

    def _reply(self, connection: socket.socket, hands: bool, questions: SimpleQueue[Module | None]) -> None:
        with suppress(OSError):
            while (module := questions.get()) is not None:
                answer = self._answer(module)
                if hands and answer is not None:
                    send_with_files(connection, answer)
                else:
                    connection.sendall(encode_reply(answer))


def read_request(connection: socket.socket, questions: SimpleQueue[Module | None]) -> int | None:
    """Queue the modules of one request, and say how many; None when there is no request, or it is nonsense and the
    connection should end.
    """
    data = receive(connection, records.REQUEST.itemsize)
    if data is None:
        return None
    request = np.frombuffer(data, records.REQUEST)[0]
    count = int(request["module_count"])
    known = request["magic"] == records.REQUEST_MAGIC and request["version"] == records.REQUEST_VERSION
    if not known or count > MOST_MODULES:
        return None
    for _ in range(count):
        data = receive(connection, records.REQUEST_MODULE.itemsize)
        if data is None:
            return None
        questions.put(decode_module(np.frombuffer(data, records.REQUEST_MODULE)[0], int(request["pid"])))
    return count


def receive(connection: socket.socket, size: int) -> bytes | None:
    """Exactly `size` bytes, or None when the other side hung up before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        got = connection.recv_into(view)
        if got == 0:
            return None
        view = view[got:]
    return bytes(data)


def decode_module(record: np.void, pid: int) -> Module:
    """The module of one request_module record of process `pid`."""
    build_id = record["build_id"].tobytes()[: min(int(record["build_id_bytes"]), 32)]
    flags = int(record["module_flags"])
    return Module(
        os.fsdecode(bytes(record["path"])),
        build_id,
        bool(flags & records.MODULE_MAIN),
        bool(flags & records.MODULE_UNPACKED),
        bool(flags & records.MODULE_UNWIND),
        pid,
        int(record["base"]),
        int(record["span"]),
    )


def send_with_files(connection: socket.socket, answer: Answer) -> None:
    """Send a reply, and the files that it names: the plan, and lists of functions and their roles if there are any."""
    data = encode_reply(answer)
    files = [path.open("rb") for path in (answer.plan, answer.chosen, answer.roles) if path is not None]
    try:
        sent = socket.send_fds(connection, [data], [file.fileno() for file in files])
    finally:
        for file in files:
            file.close()
    connection.sendall(data[sent:])


def encode_reply(answer: Answer | None) -> bytes:
    """One reply record."""
    if answer is None:
        return PLAN_SKIP
    reply = np.zeros((), records.REPLY)
    reply["status"] = answer.status
    reply["id_base"], reply["function_count"] = answer.id_base, answer.function_count
    reply["plan"] = b"" if answer.status == records.REPLY_SKIP else os.fsencode(answer.plan)
    reply["unwind"] = b"" if answer.unwind is None else os.fsencode(answer.unwind)
    reply["roles"] = b"" if answer.roles is None else os.fsencode(answer.roles)
    reply["chosen"] = b"" if answer.chosen is None else os.fsencode(answer.chosen)
    return reply.tobytes()

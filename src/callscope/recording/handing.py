"""Open files handed to a running program that could not open them itself: another user's, or one in a container.

Both ends of a pair of sockets are made in the program and one of them is taken over here (pidfd_getfd(2)), so neither
names nor rights nor namespaces stand in between; files go through it as unix(7) describes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from callscope.errors import RecordError
from callscope.recording.borrow import Borrowed
from callscope.recording.process import PROC, status_field

_PIDFD_GETFD = 438
_STREAM = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
_CLOSE_ON_EXEC = 0x40000000
"""MSG_CMSG_CLOEXEC"""
_MESSAGE, _CONTROL = struct.Struct("<QQQQQQQ"), struct.Struct("<QiI")
"""struct msghdr, struct cmsghdr (<bits/socket.h>)"""
_TEMPORARY = ("tmp", "var/tmp", "dev/shm", "run")
MOST_FILES = 16
"""at a time"""


def is_foreign(pid: int) -> bool:
    """Whether a process may be unable to open what this one can."""
    if (status_field(pid, "Uid").split() or ["0"])[1:2] not in ([str(os.geteuid())], ["0"]):
        return True
    with suppress(OSError):
        spaces = [(PROC / who / "ns/mnt").readlink() for who in ("self", str(pid))]
        roots = [(PROC / who / "root").stat() for who in ("self", str(pid))]
        return spaces[0] != spaces[1] or not os.path.samestat(*roots)
    return True


class Channel:
    """A pair of sockets: `end` is here, the other is the program's descriptor `descriptor`."""

    def __init__(self, loan: Borrowed, libc: Mapping[str, int]) -> None:
        """Make one with the program's C library, on the loan's stack. Raises RecordError."""
        self._loan, self._libc = loan, libc
        self._call("socketpair", socket.AF_UNIX, _STREAM, 0, loan.stack)
        self.descriptor, other = struct.unpack("<ii", loan.process.read(loan.stack, 8))
        try:
            self.end = socket.socket(fileno=_take_over(loan.process.pid, other))
        except OSError as error:
            self._call("close", self.descriptor)
            what = "Linux 5.6 or later" if error.errno == errno.ENOSYS else "the right to take over descriptors"
            raise RecordError(
                f"process {loan.process.pid} is another user's or in a container, for which it takes {what}: "
                "run callscope as its user, in there"
            ) from None
        finally:
            self._call("close", other)

    def hand(self, files: Sequence[int]) -> list[int]:
        """The program's descriptors of these open files of ours. Raises RecordError."""
        room = struct.calcsize("<i") * MOST_FILES
        socket.send_fds(self.end, [b"x"], list(files))
        memory, process = self._loan.stack, self._loan.process
        data, control = memory + _MESSAGE.size + 32, memory + _MESSAGE.size + 64
        vector = memory + _MESSAGE.size
        process.write(memory, _MESSAGE.pack(0, 0, vector, 1, control, _CONTROL.size + room, 0))
        process.write(vector, struct.pack("<QQ", data, 1))
        self._call("recvmsg", self.descriptor, memory, _CLOSE_ON_EXEC)
        got = process.read(control, _CONTROL.size + room)
        size, level, kind = _CONTROL.unpack_from(got)
        numbers = [number for (number,) in struct.iter_unpack("<i", got[_CONTROL.size : size])]
        if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS) or len(numbers) != len(files):
            for number in numbers:
                self._call("close", number)
            raise RecordError(f"process {process.pid} has no room for open files: its limit is reached")
        return numbers

    def close(self, descriptor: int) -> None:
        """Close a descriptor of the program's."""
        self._call("close", descriptor)

    def _call(self, name: str, *arguments: int) -> int:
        if name not in self._libc:
            raise RecordError(f"process {self._loan.process.pid} has a C library without {name}")
        result = ctypes.c_int32(self._loan.call(self._libc[name], *arguments)).value
        if result < 0:
            raise RecordError(f"process {self._loan.process.pid} cannot be handed files: {name} fails there")
        return result


@contextmanager
def reachable(channel: Channel, pid: int, file: Path) -> Iterator[str]:
    """A path by which the program reaches a file of ours, within the block: of a descriptor, or where it sees no /proc,
    of a copy. Raises RecordError.
    """
    root = PROC / str(pid) / "root"
    if os.path.lexists(root / "proc/self"):
        with file.open("rb") as opened:
            (descriptor,) = channel.hand([opened.fileno()])
        # The loader takes a path that it knows for the file it knows: each of ours has an own way to write it.
        yield f"/proc/self/{'./' * len(file.name)}fd/{descriptor}"
        channel.close(descriptor)
        return
    for temporary in _TEMPORARY:
        try:
            directory = tempfile.mkdtemp(prefix="callscope-", dir=root / temporary)
        except OSError:
            continue
        try:
            Path(directory).chmod(0o755)
            shutil.copy(file, directory)
            yield f"/{temporary}/{Path(directory).name}/{file.name}"
        finally:
            shutil.rmtree(directory)
        return
    raise RecordError(f"process {pid} sees neither /proc nor a directory for temporary files: record it from its start")


def _take_over(pid: int, descriptor: int) -> int:
    """A descriptor of another process's. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        taken = int(libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
        if taken < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return taken
    finally:
        os.close(process)

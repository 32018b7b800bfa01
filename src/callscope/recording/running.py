"""Which running program is meant, and whether it can be attached to: what is in the way, with its remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from callscope.errors import RecordError, UsageError
from callscope.recording.process import PROC, Mapping, read_maps, status_field

_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_LOADERS, _MUSL = ("ld-linux", "ld-2.", "ld.so"), "ld-musl"
_WINE = ("ntdll.so", "ntdll.dll.so")
_LONGEST_COMM = 15


def find_processes(name: str) -> list[int]:
    """The Linux processes of a name: of their file, or what they call themselves."""
    return [pid for pid in _pids() if name in _names(pid) and not is_wine(pid)]


def find_process(name: str) -> int | None:
    """The one of that name; None when there is none. Raises RecordError when there are several."""
    found = find_processes(name)
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise RecordError(f"{name} is {len(found)} processes: name one by its process id, of {listed}")
    return found[0] if found else None


def _pids() -> Iterator[int]:
    own = {os.getpid(), os.getppid()}
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and int(entry.name) not in own)


def executable(pid: int) -> Path:
    """The file that a process was started from, which may be gone. Raises OSError."""
    return Path(str((PROC / str(pid) / "exe").readlink()).removesuffix(" (deleted)"))


def _names(pid: int) -> set[str]:
    names = set()
    with suppress(OSError):
        names.add((PROC / str(pid) / "comm").read_text(errors="replace").rstrip("\n"))
    with suppress(OSError):
        names.add(executable(pid).name)
    return names


def is_wine(pid: int) -> bool:
    """Whether a process is a Windows program, under Wine."""
    with suppress(OSError):
        return any(mapping.name in _WINE for mapping in read_maps(pid))
    return False


def wine_runs() -> bool:
    """Whether any Windows program can be running."""
    return any(name.startswith("wineserver") for pid in _pids() for name in _names(pid))


def check_process(pid: int) -> None:
    """Raise RecordError, with what to do, when a process cannot be attached to; UsageError for one of no use."""
    directory = PROC / str(pid)
    if not directory.exists():
        raise RecordError(f"there is no process {pid}: see ps -e")
    if status_field(pid, "Tgid") != str(pid):
        raise RecordError(f"{pid} is a thread of process {status_field(pid, 'Tgid')}: name that")
    if pid == os.getpid():
        raise UsageError("callscope cannot attach to itself: use callscope.trace")
    if status_field(pid, "State").startswith("Z"):
        raise RecordError(f"process {pid} has ended: only its parent has not noticed yet")
    tracer = status_field(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise RecordError(f"process {pid} is being debugged by process {tracer}: end that first")
    try:
        maps = read_maps(pid)
        elf_class = _elf_class(pid)
    except PermissionError:
        raise RecordError(refusal(pid)) from None
    except OSError:
        raise RecordError(f"process {pid} belongs to the kernel, or has just ended: it cannot be recorded") from None
    if not maps:
        raise RecordError(f"process {pid} belongs to the kernel: it cannot be recorded")
    if elf_class == 1:
        raise RecordError(f"process {pid} is a 32-bit program: only 64-bit programs can be recorded")
    _check_loader(pid, maps)


def _elf_class(pid: int) -> int:
    """1 for 32 bits, 2 for 64 (System V gABI, "ELF Identification")."""
    with (PROC / str(pid) / "exe").open("rb") as file:
        return file.read(5)[4]


def _check_loader(pid: int, maps: list[Mapping]) -> None:
    names = {Path(mapping.path.removesuffix(" (deleted)")).name for mapping in maps if "x" in mapping.protection}
    if any(name.startswith(_LOADERS) for name in names):
        return
    if any(name.startswith(_MUSL) for name in names):
        raise RecordError(
            f"process {pid} runs with musl, whose threads have no room for the agent once they run: "
            "record it from its start, with callscope record"
        )
    raise RecordError(
        f"process {pid} is statically linked: it has no loader that could load the agent, and cannot be recorded"
    )


def refusal(pid: int) -> str:
    """Why the system does not let us, and what to do."""
    users = status_field(pid, "Uid").split()
    if os.geteuid() != 0 and users and set(users) != {str(os.geteuid())}:
        return f"process {pid} belongs to user {users[0]}: run callscope as that user, or as root"
    scope = "0"
    with suppress(OSError):
        scope = _YAMA.read_text().strip()
    if scope == "3":
        return f"{_YAMA} is 3: nothing can be attached to until the next boot; record from the start"
    if scope == "2" or (scope == "1" and os.geteuid() != 0):
        remedy = "run callscope as root" if scope == "2" else f"run callscope as root, or: echo 0 | sudo tee {_YAMA}"
        return f"the system lets nobody attach to process {pid} ({_YAMA} is {scope}): {remedy}"
    return (
        f"the system does not let us attach to process {pid}: it has more rights, has forbidden it (PR_SET_DUMPABLE), "
        "or is in another user namespace; run callscope as root, with CAP_SYS_PTRACE"
    )

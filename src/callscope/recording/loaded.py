"""The files of what a running process has loaded: by their paths or, where these lead elsewhere, by what /proc
offers. A file may have been replaced since, or belong to a container.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from callscope.binary.open import read_build_id
from callscope.errors import CallscopeError, PlanError
from callscope.recording.plans import Module
from callscope.recording.process import PROC, Process
from callscope.recording.running import executable

_HEAD_BYTES = 4096
"""that tell one file from another where there is no build-id: ELF headers, hashes"""
_ELF = b"\x7fELF"
GONE = " (deleted)"
"""what the kernel adds to the path of a file that is no more"""


class LoadedFiles:
    """The modules of a process. `find` gives the file of one: a copy in the trace where its path leads elsewhere."""

    def __init__(self, pid: int, copies: Path) -> None:
        """copies: a directory for them. Raises OSError when the process is gone."""
        self._pid, self._copies = pid, copies
        process = Process(pid)
        try:
            self._mappings = {mapping.start: mapping for mapping in process.maps}
            main = executable(pid)
            self._heads: dict[int, bytes] = {}
            self.modules: list[Module] = []
            for path, base in process.libraries().items():
                head = _head(process, base)
                if head.startswith(_ELF):  # other files are mapped, too, of any length
                    name = path.removesuffix(GONE)
                    self._heads[base] = head
                    self.modules.append(Module(name, process.build_id(base), Path(name) == main, base=base))
        finally:
            process.close()
        self._found: dict[int, str] = {}

    def find(self, module: Module) -> str:
        """Where to read the file of a module that lies at `module.base`. Raises PlanError."""
        if module.base not in self._heads:
            return module.path
        if module.base not in self._found:
            self._found[module.base] = self._search(module)
        return self._found[module.base]

    def _search(self, module: Module) -> str:
        if self._is_it(Path(module.path), module):
            return module.path
        for path in self._others(module):
            if self._is_it(path, module):
                copy = self._copies / f"{len(self._found)}-{Path(module.path).name}"
                try:
                    shutil.copyfile(path, copy)
                except OSError as error:
                    raise PlanError(f"{module.path} cannot be copied to the trace: {error.strerror}") from None
                copy.chmod(0o600)
                return str(copy)
        raise PlanError("the file was deleted or replaced while the program used it, and is not to be had: run as root")

    def _others(self, module: Module) -> Iterator[Path]:
        own, mapping = PROC / str(self._pid), self._mappings[module.base]
        yield own / "map_files" / f"{mapping.start:x}-{mapping.end:x}"
        yield own / "root" / module.path.lstrip("/")
        if module.is_main:
            yield own / "exe"

    def _is_it(self, path: Path, module: Module) -> bool:
        """Whether a file is the one that was loaded: by its build-id or, where there is none, its first bytes."""
        with suppress(OSError, CallscopeError):
            if module.build_id:
                return read_build_id(str(path)) == module.build_id
            with path.open("rb") as file:
                return file.read(_HEAD_BYTES) == self._heads[module.base]
        return False


def _head(process: Process, base: int) -> bytes:
    with suppress(OSError):
        return process.read(base, _HEAD_BYTES)
    return b""

"""Which plan each module of the recorded programs gets: the decisions behind the recorder's answers.

Every image is planned once a session, however many processes ask, and gets function ids of its own. A module that
cannot be planned is left alone and listed with its reason.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.binary.open import open_image, read_build_id
from callscope.binary.pe import PeImage
from callscope.binary.symbols import open_symbols
from callscope.errors import CallscopeError, PlanError
from callscope.native import AGENT_NAME, DROPIN_NAME, PYTHON_NAME, WINDOWS_AGENT_NAME
from callscope.patching.cache import PlanFiles, load_or_plan
from callscope.patching.report import PlanReport
from callscope.patching.scope import Scope
from callscope.patching.unwind_cache import load_or_compile
from callscope.recording.rules import Functions, Rules
from callscope.recording.session import Session
from callscope.recording.unpacked import is_packed, is_windows_file, memory_image

_OWN = (AGENT_NAME, PYTHON_NAME, DROPIN_NAME, WINDOWS_AGENT_NAME)
_LOADERS = ("ld-linux", "ld-musl", "ld-2.", "ld.so", "ntdll.dll")


@dataclass(frozen=True)
class Module:
    """A module that a process has loaded, as it lies at `base` in process `pid`. `build_id` may be empty. is_unpacked:
    it has unpacked itself, and written its memory where it was told. wants_unwind: its stacks are to be walked.
    """

    path: str
    build_id: bytes
    is_main: bool
    is_unpacked: bool = False
    wants_unwind: bool = field(default=False, compare=False)
    pid: int = field(default=0, compare=False)
    base: int = field(default=0, compare=False)
    span: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Answer:
    """What the agent is told. `id_base`: id of the plan's function 0. `chosen`: bit map of functions; None for all.
    status: REPLY_PLAN; or REPLY_UNPACK: wait until the program has unpacked itself, write its memory to `plan`, and
    ask again; or REPLY_SKIP. unwind: the unwind table, where it was asked for and there is one.
    roles: ROLE_* of each function, a byte each.
    """

    plan: Path
    id_base: int
    function_count: int
    chosen: Path | None
    status: int = records.REPLY_PLAN
    unwind: Path | None = None
    roles: Path | None = None


@dataclass(frozen=True)
class PlannedImage:
    """An image of this session. `path` is the module's, `source` the file it was planned from: another one where a
    program unpacked itself.
    """

    path: str
    source: str
    files: PlanFiles
    id_base: int
    report: PlanReport


class Plans:
    """The plans of one session. `answer` may be called from several threads."""

    def __init__(self, session: Session, rules: Rules, planner: Callable[[str], PlanFiles]) -> None:
        """`planner` gives the plan of an image by its path."""
        self._session = session
        self.rules = rules
        self._planner = planner
        self._lock = threading.Lock()
        self._planning = threading.Lock()
        self._images: dict[str, Future[PlannedImage]] = {}
        self._chosen: dict[tuple[int, str, bool], Future[Answer | None]] = {}
        self._rejected: set[str] = set()
        self._unpacked: dict[tuple[int, str], Path] = {}
        self._next_id = 1
        self._wanted: dict[int, NDArray[np.bool_]] = {}
        self.locate: Callable[[Module], str] = lambda module: module.path
        """Where to read the file of a module. Raises PlanError."""
        self.chosen_counts: dict[int, int] = {}
        """By an image's first function id: how many of its functions the rules chose, where they did not choose all."""

    def answer(self, module: Module) -> Answer | None:
        """What to trace of a module; None for nothing of it. Never raises."""
        found = self._traced(module)
        if not module.wants_unwind or (found is not None and found.status == records.REPLY_UNPACK):
            return found
        try:
            table = unwind_table(module, found.plan if found is not None else None)
            check_length(table, "set CALLSCOPE_CACHE to a shorter one")
        except CallscopeError:
            return found  # its frames are guessed
        if found is None:
            return Answer(Path(), 0, 0, None, records.REPLY_SKIP, table)
        return replace(found, unwind=table)

    def _traced(self, module: Module) -> Answer | None:
        """What to trace of a module; None for nothing of it. Never raises."""
        if is_untraceable(module.path):
            return None
        with self._lock:
            wanted = self.rules.wants_module(module.path, module.is_main)
        if not wanted:
            return None
        try:
            source = self.locate(module)
            if module.is_main and is_packed(source):
                dump = self._unpacked_file(module)
                if is_windows_file(source) and not module.is_unpacked:
                    return Answer(dump, 0, 0, None, records.REPLY_UNPACK)
                source = str(memory_image(module.pid, module.base, module.span, dump))
            image = self._image(module, source)
            return self._select(image, module)
        except CallscopeError as error:
            self._reject(module.path, str(error))
        except Exception as error:  # a fault of ours must not become one of the traced program
            self._reject(module.path, f"planning failed: {type(error).__name__}: {error}")
        return None

    def images(self) -> list[PlannedImage]:
        """The images planned so far, in order of their ids."""
        with self._lock:
            futures = list(self._images.values())
        done = [future.result() for future in futures if future.done() and future.exception() is None]
        return sorted(done, key=lambda image: image.id_base)

    def keep(self, id_bases: Collection[int]) -> None:
        """Copy the plans of some images, by their first function ids, into the trace: a crash in a trampoline is
        understood with them only.
        """
        for image in self.images():
            if image.id_base in id_bases:
                with suppress(OSError):
                    shutil.copyfile(image.files.plan, self._session.plans / image.files.plan.name)
                    (self._session.plans / image.files.plan.name).chmod(0o600)

    def restore(self) -> None:
        """Copy what the trace keeps of plans again: its directory was removed. Raises OSError."""
        for image in self.images():
            self._keep_functions(image.files)
            if image.id_base in self._wanted:
                self._mark(image, read_functions(image.files.functions), self._wanted[image.id_base])

    def _keep_functions(self, files: PlanFiles) -> None:
        """Copy what readers need of a plan into the trace."""
        for path in filter(None, (files.functions, files.arguments)):
            shutil.copyfile(path, self._session.plans / path.name)
            (self._session.plans / path.name).chmod(0o600)

    def _unpacked_file(self, module: Module) -> Path:
        """Where the memory of a program that unpacks itself is written. Raises PlanError."""
        with self._lock:
            name = f"unpacked-{len(self._unpacked)}"
            path = self._unpacked.setdefault((module.pid, module.path), self._session.plans / name)
        check_length(path, "record to a shorter one with -o")
        return path

    def _image(self, module: Module, source: str) -> PlannedImage:
        """The image of a module, planned from `source` now if nobody has begun to. Raises CallscopeError."""
        if source.endswith(" (deleted)"):
            raise PlanError("the file was deleted while the program used it: start the program again")
        build_id = read_build_id(source)
        if module.build_id and build_id != module.build_id:
            raise PlanError("the file was replaced while the program used it: start the program again")
        key = build_id.hex() or _file_key(Path(source))
        with self._lock:
            future = self._images.get(key)
            mine = future is None
            if future is None:
                future = self._images[key] = Future()
        if mine:
            try:
                future.set_result(self._plan(module.path, source, build_id))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _plan(self, path: str, source: str, build_id: bytes) -> PlannedImage:
        with self._planning:  # the planner uses all cores for one image
            files = self._planner(source)
        if files.build_id != build_id:
            raise PlanError("the file was replaced while it was being planned: record again")
        check_length(files.plan, "set CALLSCOPE_CACHE to a shorter one")
        report = files.read_report()
        copy = self._session.plans / files.functions.name
        self._keep_functions(files)
        with self._lock:
            if self._next_id + files.function_count > records.LAST_FUNCTION:
                raise PlanError("this session has run out of function ids: record fewer programs at once")
            image = PlannedImage(path, source, files, self._next_id, report)
            self._next_id += files.function_count
        entry = {
            "id_base": image.id_base,
            "function_count": files.function_count,
            "path": path,
            "build_id": build_id.hex(),
            "functions": str(copy.relative_to(self._session.directory)),
            "span": int(np.fromfile(copy, records.FUNCTIONS_HEADER, 1)["image_span"][0]),
            "coverage": {
                name: {"patched": part.patched, "found": part.found}
                for name, part in (("entries", report.entries), ("exits", report.exits), ("tails", report.tail_jumps))
            },
        }
        if files.arguments is not None:
            layouts = self._session.plans / files.arguments.name
            entry["arguments"] = str(layouts.relative_to(self._session.directory))
        if source != path:
            entry["memory"] = os.path.relpath(source, self._session.directory)
        self._session.update(lambda state: state["images"].append(entry))
        return image

    def _select(self, image: PlannedImage, module: Module) -> Answer | None:
        """The answer for a module of `image`, decided once for each path and role."""
        key = (image.id_base, module.path, module.is_main)
        with self._lock:
            future = self._chosen.get(key)
            mine = future is None
            if future is None:
                future = self._chosen[key] = Future()
        if mine:
            try:
                future.set_result(self._choose(image, module, len(self._chosen)))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _choose(self, image: PlannedImage, module: Module, number: int) -> Answer | None:
        functions = read_functions(image.files.functions)
        rvas = functions["rva"]
        known = Functions(
            rvas,
            functions["bytes"],
            functions["owner"],
            open_image(image.source).base,
            lambda: open_symbols(image.source).names(rvas),
            lambda: exception_entries(image.source),
        )
        chosen = self.rules.choose(module.path, module.is_main, known)
        path = None
        if chosen is not None:
            with self._lock:
                before = self.chosen_counts.get(image.id_base, 0)
                self.chosen_counts[image.id_base] = max(before, int(chosen.sum()))
            self._leave_out(image, functions, chosen)
            if not chosen.any():
                return None
            path = self._session.plans / f"{image.files.functions.stem}-{number}.chosen"
            check_length(path, "record to a shorter one with -o")
            path.write_bytes(as_bits(chosen))
        return Answer(
            image.files.plan,
            image.id_base,
            image.files.function_count,
            path,
            roles=self._roles(image, module, known, number),
        )

    def _roles(self, image: PlannedImage, module: Module, known: Functions, number: int) -> Path | None:
        """The file of its functions' roles; None where no option gives any."""
        if not self.rules.roles:
            return None
        path = self._session.plans / f"{image.files.functions.stem}-{number}.roles"
        check_length(path, "record to a shorter one with -o")
        path.write_bytes(self.rules.roles_of(module.path, known).tobytes())
        return path

    def _leave_out(self, image: PlannedImage, functions: NDArray[np.void], chosen: NDArray[np.bool_]) -> None:
        """Mark in the trace's copy which functions no module of an image was to record: hooks may tell of them."""
        with self._lock:
            chosen = self._wanted[image.id_base] = self._wanted.get(image.id_base, np.zeros_like(chosen)) | chosen
            self._mark(image, functions, chosen)

    def _mark(self, image: PlannedImage, functions: NDArray[np.void], chosen: NDArray[np.bool_]) -> None:
        marked = functions.copy()
        marked["flags"][~chosen] |= records.FUNCTION_LEFT_OUT
        with (self._session.plans / image.files.functions.name).open("r+b") as file:
            header = np.frombuffer(file.read(records.FUNCTIONS_HEADER.itemsize), records.FUNCTIONS_HEADER)
            file.seek(int(header["function_offset"][0]))
            file.write(marked.tobytes())

    def _reject(self, path: str, reason: str) -> None:
        """List a module as not traced, once."""
        with self._lock:
            if path in self._rejected:
                return
            self._rejected.add(path)
        with suppress(OSError):
            self._session.update(lambda state: state["rejected"].append({"path": path, "reason": reason}))


def exception_entries(path: str) -> list[int]:
    """Where the entries of an image's exception directory begin; none in ELF files."""
    image = open_image(path)
    return image.exception_entries[:, 0].tolist() if isinstance(image, PeImage) else []


def unwind_table(module: Module, plan: Path | None) -> Path:
    """The unwind table of a module, and of its plan if it has one. Raises ImageError or PlanError."""
    table = load_or_compile(module.path, plan)
    if module.build_id and table.build_id and table.build_id != module.build_id:
        raise PlanError("the file was replaced while the program used it: start the program again")
    return table.path


def planner_of(scope: Scope) -> Callable[[str], PlanFiles]:
    """The plan cache, for plans of one scope."""
    return lambda path: load_or_plan(path, scope=scope)


def is_untraceable(path: str) -> bool:
    """Whether a module is one that is never traced: the loader, which runs before there is an agent; callscope's own;
    the kernel's code in every process, which is no file; what only the program itself can find by that path."""
    name = PurePath(path).name
    return not path.startswith("/") or path.startswith("/proc/self/") or name in _OWN or name.startswith(_LOADERS)


def read_functions(path: Path) -> NDArray[np.void]:
    """The FUNCTION records of a functions file. Raises PlanError when it is damaged."""
    data = np.fromfile(path, np.uint8)
    if len(data) >= records.FUNCTIONS_HEADER.itemsize:
        header = data[: records.FUNCTIONS_HEADER.itemsize].view(records.FUNCTIONS_HEADER)[0]
        start, count = int(header["function_offset"]), int(header["function_count"])
        if header["magic"] == records.FUNCTIONS_MAGIC and start + count * records.FUNCTION.itemsize <= len(data):
            found = data[start : start + count * records.FUNCTION.itemsize].view(records.FUNCTION)
            if not count or int(found["owner"].max()) < count:
                return found
    raise PlanError(f"{path} is damaged: delete it and record again")


def check_length(path: Path, remedy: str) -> None:
    """Raise PlanError when a path does not fit into a reply."""
    if len(os.fsencode(path)) >= records.PATH_BYTES:
        raise PlanError(f"the path {path} is too long for the agent: {remedy}")


def as_bits(chosen: NDArray[np.bool_]) -> bytes:
    """A bit for each function, least significant first, as the agent reads it."""
    return np.packbits(chosen, bitorder="little").tobytes()


def _file_key(path: Path) -> str:
    """Stands for a file without a build-id."""
    status = path.stat()
    return f"{path}:{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"

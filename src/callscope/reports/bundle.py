"""Makes a trace self-contained: the binaries it speaks of, and their debug files, are copied into it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from callscope.binary.debug_files import SYSTEM_DEBUG_DIRECTORIES, find_debug_file, open_symbol_file
from callscope.binary.open import open_image
from callscope.errors import CallscopeError, ImageError, TraceError
from callscope.reports.frames import BINARIES, find_binary
from callscope.trace.open import Trace


@dataclass
class Bundle:
    """What was copied. bytes: of all copies. missing: modules whose files are not here as they were loaded."""

    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)


def bundle(trace: Trace, directories: tuple[Path, ...] = ()) -> Bundle:
    """Copy what `directories` and the places where modules were loaded from hold; copies made before stay.

    Raises TraceError when the trace cannot be written.
    """
    target = trace.path / BINARIES
    done = Bundle()
    seen: set[tuple[str, bytes]] = set()
    for module in trace.modules:
        key = (module.path, module.build_id)
        if key in seen or not module.path.startswith("/"):
            continue
        seen.add(key)
        found = find_binary(module.path, module.build_id, [*directories, target])
        if found is None:
            done.missing.append(module.path)
            continue
        try:
            _copy(found, _place(target, module.path, module.build_id), done)
            for source, name in _debug_files(found, [*directories, target]):
                _copy(source, target / name, done)
        except OSError as error:
            raise TraceError(
                f"cannot copy {found} into {target}: {error.strerror}; make room, or write there"
            ) from None
    return done


def _place(target: Path, path: str, build_id: bytes) -> Path:
    if len(build_id) < 2:
        return target / Path(path).relative_to("/")
    return target / ".build-id" / build_id.hex()[:2] / build_id.hex()[2:]


def _debug_files(path: Path, directories: list[Path]) -> list[tuple[Path, Path]]:
    """The separate debug file of a binary, and its name below the directory of copies."""
    try:
        if open_image(path).is_pe:
            database = path.with_suffix(".pdb")
            return [(database, Path(database.name))] if database.is_file() else []
        source = open_symbol_file(path)
        found = find_debug_file(source, source.build_id, [*directories, *SYSTEM_DEBUG_DIRECTORIES], [])
    except (CallscopeError, ImageError):
        return []
    if found is None or found.path is None or len(source.build_id) < 2:
        return []
    name = source.build_id.hex()
    return [(found.path, Path(".build-id") / name[:2] / f"{name[2:]}.debug")]


def _copy(source: Path, place: Path, done: Bundle) -> None:
    if place.exists():
        return
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = place.with_name(place.name + ".new")
    shutil.copyfile(source, partial)
    partial.chmod(0o600)
    partial.replace(place)
    done.files += 1
    done.bytes += place.stat().st_size

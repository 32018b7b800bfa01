"""Who may know whom: the directions of docs/architecture.md, in Python imports and in C includes."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src/callscope"
NATIVE = ROOT / "native"

READING = {"trace", "calls", "reports", "exporters", "viewer"}
ROOMS: dict[str, set[str]] = {
    "binary": set(),
    "patching": {"binary"},
    "recording": {"binary", "patching"},
    "trace": {"binary"},
    "calls": {"binary", "trace"},
    "reports": {"binary", "trace", "calls"},
    "exporters": {"trace", "calls", "reports"},
    "viewer": {"trace", "calls", "reports"},
    "dataset": {"reports"},
    "bytecode": set(),
    "cli": {"binary", "patching", "recording", "bytecode", "dataset", *READING},
    "api": {"recording", "cli", *READING},
}
"""Each room, and the rooms it may import; `api` stands for DOORS. What else lies outside is for all, and knows none."""

DOORS = {"__init__.py", "__main__.py", "api.py", "ipython.py", "pytest_plugin.py"}
"""Files outside of rooms that lead into them, as cli does."""

LIBRARIES: dict[str, set[str]] = {
    "click": {"cli"},
    "rich": {"cli", "viewer"},
    "textual": {"viewer"},
    "iced_x86": {"binary", "patching"},
    "lief": {"binary"},
    "symbolic": {"binary"},
    "elftools": {"binary"},
    "pycparser": {"binary"},
    "duckdb": {"calls", "reports", "dataset", "exporters", "viewer", "api"},
    "pyarrow": {"calls", "reports", "exporters", "viewer", "api", ""},
}
"""Third-party packages, and the rooms that may use them; "" stands for what lies outside of rooms."""

C_ROOMS: dict[str, set[str]] = {
    "include": {"include"},
    "include/callscope": {"include/callscope"},
    "agent/core": {"include/callscope", "agent/core"},
    "agent/linux": {"include/callscope", "agent/core", "agent/linux"},
    "agent/windows": {"include/callscope", "agent/core", "agent/windows", "inject"},
    "inject": {"include/callscope", "inject"},
    "launcher": {"include/callscope", "inject", "launcher"},
    "kernel": {"include/callscope", "kernel"},
    "python": {"include/callscope", "python"},
    "python/calls": {"include/callscope", "python/calls"},
}
"""Directories below native/, and those whose headers they may include."""

FREESTANDING = {"stdbool.h", "stddef.h", "stdint.h", "stdatomic.h", "limits.h"}
"""System headers that declare no function: all that the portable part of the agent may use."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    if len(parts) > 1:
        return parts[0]
    return "api" if parts[0] in DOORS else ""


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_room_is_known() -> None:
    found = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found <= set(ROOMS)
    assert {room_of(path) for path in modules()} - {""} <= set(ROOMS)


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if (parts := name.split("."))[0] == "callscope" and len(parts) > 1 and parts[1] in ROOMS
        if parts[1] not in {room_of(path), *ROOMS.get(room_of(path), set())}
    ]
    assert wrong == []


def test_the_directions_have_no_way_back() -> None:
    for room, known in ROOMS.items():
        for other in known:
            assert room not in ROOMS[other], f"{room} and {other} know each other"
    assert not ROOMS["recording"] & READING
    assert not any("recording" in ROOMS[room] for room in READING)


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if (library := name.split(".")[0]) in LIBRARIES and room_of(path) not in LIBRARIES[library]
    ]
    assert wrong == []


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, callscope; print([n for n in ('numpy', 'pyarrow', 'duckdb', 'click') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert done.stdout == "[]\n", done.stderr


def c_files() -> list[Path]:
    return sorted(path for pattern in ("*.c", "*.h", "*.S", "*.inc") for path in NATIVE.rglob(pattern))


def includes(path: Path) -> Iterator[tuple[str, str]]:
    """(opening quote or bracket, name) of every include."""
    for match in re.finditer(r'^\s*#\s*include\s*(["<])([^">]+)[">]', path.read_text(), re.MULTILINE):
        yield match[1], match[2]


def resolve(path: Path, name: str) -> Path | None:
    """The header of ours that an include means."""
    candidates = (path.parent / name, NATIVE / "include" / name)
    return next((candidate.resolve() for candidate in candidates if candidate.exists()), None)


def test_c_includes_go_one_way() -> None:
    wrong = []
    for path in c_files():
        directory = str(path.parent.relative_to(NATIVE))
        assert directory in C_ROOMS, f"{path.relative_to(ROOT)} lies in no known room"
        for quote, name in includes(path):
            header = resolve(path, name)
            if header is not None:
                allowed = str(header.parent.relative_to(NATIVE)) in C_ROOMS[directory]
            else:
                allowed = quote == "<"
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert wrong == []


def test_the_portable_agent_includes_no_system() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} includes <{name}>"
        for path in (NATIVE / "agent/core").glob("*.[ch]")
        for quote, name in includes(path)
        if quote == "<" and name not in FREESTANDING
    ]
    assert wrong == []


def test_python_is_seen_in_one_place() -> None:
    wrong = [
        path for path in c_files() for _, name in includes(path) if name == "Python.h" and path.parent.name != "python"
    ]
    assert wrong == []


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "format/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pattern", ["src/**/*.py", "native/**/*.[chS]", "tests/**/*.py", "tools/*", "format/*.py"])
def test_files_stay_readable_in_one_sitting(pattern: str) -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in ROOT.glob(pattern)
        if path.is_file()
        and (lines := path.read_text().count("\n")) > 520
        and path.name not in ("records.h", "format.py")
    }
    assert long == {}

"""pytest plugin: `pytest --callscope` writes a trace of each test's Python calls."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

LONGEST_NAME = 120
_written = pytest.StashKey[list[Path]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --callscope and --callscope-dir."""
    group = parser.getgroup("callscope")
    group.addoption("--callscope", action="store_true", help="record the Python calls of each test")
    group.addoption("--callscope-dir", default="callscope-traces", metavar="DIR", help="where the traces go")


def trace_name(node_id: str) -> str:
    """A directory name for a test: its node id, without what file names should not hold, and bounded."""
    name = re.sub(r"[^\w.-]+", "-", node_id).strip("-.")
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(node_id.encode()).hexdigest()[:12]
        name = f"{name[:LONGEST_NAME]}-{digest}"
    return f"{name}.trace"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Record the test itself, without its fixtures."""
    if not item.config.getoption("--callscope"):
        yield
        return
    from callscope.recording.inside import trace  # only where it is wanted: this module is loaded in every pytest

    recording = trace(Path(item.config.getoption("--callscope-dir")) / trace_name(item.nodeid))
    with recording:
        yield
    if recording.path is not None:
        item.config.stash.setdefault(_written, []).append(recording.path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say where the traces are."""
    written = config.stash.get(_written, [])
    if written:
        directory = config.getoption("--callscope-dir")
        plural = "" if len(written) == 1 else "s"
        terminalreporter.write_line(f"callscope: {len(written)} trace{plural} in {directory}")

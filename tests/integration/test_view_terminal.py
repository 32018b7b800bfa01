"""`callscope view --tui` in a terminal of its own."""

import importlib.util
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import callscope, tool_environment

SECONDS = 60


@pytest.mark.skipif(importlib.util.find_spec("textual") is None, reason="Textual is not installed")
def test_a_trace_in_a_terminal(tmp_path: Path, plan_cache: Path) -> None:
    program = compile_program([TARGETS / "viewed.c"], tmp_path / "viewed", ["-g", "-O1", "-pthread"])
    trace = tmp_path / "viewed.trace"
    assert callscope(["record", "-q", "-o", trace, program], plan_cache).status == 0
    refused = callscope(["view", "--tui", trace], plan_cache)
    assert (refused.status, refused.errors.count("\n")) == (2, 1) and "needs a terminal" in refused.errors
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "callscope", "view", "--tui", str(trace)]
    environment = tool_environment(plan_cache) | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    shown = b""
    with subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment) as process:
        os.close(inner)

        def wait_for(text: bytes) -> None:
            nonlocal shown
            end = time.monotonic() + SECONDS
            while text not in shown:
                assert select.select([outer], [], [], max(end - time.monotonic(), 0))[0], shown[-500:]
                shown += os.read(outer, 65536)

        wait_for(b"weigh_all")
        os.write(outer, b"?")
        wait_for(b"sort by the next column")
        shown = b""
        os.write(outer, b"q")  # closes the help
        wait_for(b"weigh_all")
        os.write(outer, b"q")
        while True:
            try:
                if not os.read(outer, 65536):
                    break
            except OSError:  # all have closed it
                break
        assert process.wait(SECONDS) == 0
    os.close(outer)
    assert not (trace / "calls/view").exists()  # the timeline's index is the browser's

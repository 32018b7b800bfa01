"""A Direct3D 11 program under Wine, on a screen in memory: traced it draws the same picture, and its trace says how."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from callscope.recording.wine import find_wine
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import tool_environment
from tests.builders.windows import lacking, make_prefix

pytestmark = [
    pytest.mark.skipif(lacking() is not None, reason=lacking() or ""),
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed"),
]

WIDTH, HEIGHT = 320, 240
FRAMES = 40
BACKGROUND = (0, 25, 76)
COMMAND = [sys.executable, "-c", "import sys; from callscope.cli.main import main; sys.exit(main())"]


@dataclass(frozen=True)
class Screen:
    """A screen in memory, and the program that draws on it."""

    framebuffer: Path
    environment: dict[str, str]
    cube: Path

    def picture(self) -> NDArray[np.uint8]:
        """The window's red, green and blue: uint8, shape (HEIGHT, WIDTH, 3).

        The file is an X window dump (X11/XWDFile.h): a header of big-endian words, colours, then rows of pixels.
        """
        data = self.framebuffer.read_bytes()
        words = struct.unpack(">25I", data[:100])
        start, row = words[0] + 12 * words[19], words[12]
        lines = [data[start + y * row : start + y * row + 4 * WIDTH] for y in range(HEIGHT)]
        pixels = np.frombuffer(b"".join(lines), np.uint8).reshape(HEIGHT, WIDTH, 4)
        return pixels[:, :, 2::-1].copy()

    def draw(self, *command: str | Path) -> tuple[str, int, NDArray[np.uint8]]:
        """Run a command that draws; its output and status, and what was on the screen when it had drawn."""
        with subprocess.Popen(
            [*map(str, command), str(FRAMES), "1500"], env=self.environment, stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout is not None
            output = program.stdout.readline()
            time.sleep(0.5)  # until the driver has shown it
            picture = self.picture()
            output += program.stdout.read()
            return output.replace("\r", ""), program.wait(60), picture


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Iterator[Screen]:
    directory = tmp_path_factory.mktemp("drawing")
    cube = compile_program([TARGETS / "windows_cube.cpp"], directory / "cube.exe", ["-O2"], "mingw")
    reader, writer = os.pipe()
    server = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x480x24", "-fbdir", str(directory)]
    with subprocess.Popen(server, pass_fds=[writer], stderr=subprocess.DEVNULL) as display:
        os.close(writer)
        with os.fdopen(reader) as answer:
            number = answer.readline().strip()
        drawing = {"DISPLAY": f":{number}", "LIBGL_ALWAYS_SOFTWARE": "1"}
        before = {name: os.environ.get(name) for name in drawing}
        os.environ.update(drawing)  # Wine's services keep the display they were started with
        try:
            wine = make_prefix(directory)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({name: value} if value is not None else {})
        environment = tool_environment(plan_cache) | wine | drawing
        yield Screen(directory / "Xvfb_screen0", environment, cube)
        subprocess.run(["wineserver", "-k"], env=environment, check=False)
        display.terminate()


def test_a_traced_program_draws_the_same(screen: Screen, tmp_path: Path) -> None:
    output, status, plain = screen.draw(find_wine(), screen.cube)
    assert (output, status) == (f"{FRAMES} frames\n", 0)
    assert np.abs(plain[0, 0].astype(int) - BACKGROUND).max() <= 1
    background = (plain == plain[0, 0]).all(axis=2)
    assert 0.5 < background.mean() < 0.95
    assert len(np.unique(plain[~background], axis=0)) > 500
    modules = [word for name in ("main", "d3d11.dll", "dxgi.dll") for word in ("-m", name)]
    trace = tmp_path / "cube.trace"
    output, status, traced = screen.draw(*COMMAND, "record", "-q", "-o", trace, *modules, screen.cube)
    assert (output, status) == (f"{FRAMES} frames\n", 0)
    assert np.array_equal(plain, traced)
    check_trace(trace, screen.environment)


def test_attach_while_it_draws_and_detach(screen: Screen, tmp_path: Path) -> None:
    """The program goes on drawing, traced for a second and then untraced."""

    def callscope(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)], env=screen.environment, capture_output=True, text=True, timeout=120
        )

    trace = tmp_path / "cube.trace"
    trace.mkdir()
    (trace / "session.json").write_text('{"format": "callscope-trace"}')
    missing = callscope("attach", "missing.exe", "-o", trace)
    assert missing.returncode == 1
    assert "no such process" in missing.stderr
    assert (trace / "session.json").exists()
    shutil.rmtree(trace)
    name = screen.cube.name
    with subprocess.Popen(
        [find_wine(), str(screen.cube), "0"], env=screen.environment, stdout=subprocess.DEVNULL
    ) as program:
        try:
            wait_until(lambda: len(np.unique(screen.picture().reshape(-1, 3), axis=0)) > 500)
            done = callscope("attach", name, "--duration", "1s", "-o", trace)
            assert done.returncode == 0, done.stderr
            before = screen.picture()
            wait_until(lambda: not np.array_equal(before, screen.picture()))
            assert program.poll() is None
            again = callscope("attach", name, "--duration", "1s", "-o", trace)
            assert again.returncode == 0, again.stderr
            before = screen.picture()
            wait_until(lambda: not np.array_equal(before, screen.picture()))
        finally:
            subprocess.run(["wineserver", "-k"], env=screen.environment, check=False)
    shown = callscope("calls", trace, "--format", "json", "-f", "frame")
    frames = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(frames) > 20
    assert all(later["start_ns"] > earlier["start_ns"] for earlier, later in pairwise(frames))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that will be so. AssertionError after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_trace(trace: Path, environment: dict[str, str]) -> None:
    """Every frame calls into Direct3D in the program's order; messages reach the window's procedure."""
    done = subprocess.run(
        [*COMMAND, "calls", str(trace), "--format", "json"], env=environment, capture_output=True, text=True, check=True
    )
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    by_id = {call["call_id"]: call for call in calls}

    def inside(call: dict[str, object], function: str) -> bool:
        while (parent := by_id.get(call["parent_id"])) is not None:
            if parent["function"] == function:
                return True
            call = parent
        return False

    frames = [call for call in calls if call["function"] == "frame"]
    assert len(frames) == FRAMES
    wanted = ("UpdateSubresource", "OMSetRenderTargets", "ClearRenderTargetView", "DrawIndexed", "Present")
    drawing = [
        (by_id[call["parent_id"]]["function"], call["function"].rpartition("_")[2])
        for call in calls
        if call["module"] in ("d3d11.dll", "dxgi.dll") and call["function"].endswith(wanted) and inside(call, "frame")
        and by_id[call["parent_id"]]["module"] == "cube.exe"
    ]  # fmt: skip
    assert drawing == [
        ("update", "UpdateSubresource"),
        ("draw", "OMSetRenderTargets"), ("draw", "ClearRenderTargetView"), ("draw", "DrawIndexed"),
        ("show", "Present"),
    ] * FRAMES  # fmt: skip
    assert sum(call["function"] == "pump" for call in calls) >= FRAMES
    messages = [call for call in calls if call["function"] == "window_procedure"]
    assert any(inside(call, "pump") for call in messages)

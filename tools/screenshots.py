#!/usr/bin/env python3
"""Records real programs and writes docs/images/: a picture of each view of `callscope view`, taken in Chromium, and
of the terminal's.

`python tools/screenshots.py [DIRECTORY]` needs bash, gcc, Chromium and the packages `playwright` and `textual`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZE: Final = {"width": 1200, "height": 640}
SETTLED: Final = 700
"""milliseconds until a view is drawn"""
SCRIPT: Final = (
    'squares() { for i in 1 2 3 4 5; do echo $((i * i)); done; }; squares | while read n; do echo "got $n"; done'
)
LARGEST: Final = 200_000
TERMINAL: Final = (100, 30)
"""columns and rows"""


class Shot(NamedTuple):
    """A picture: the trace it is of, the state of the page, keys pressed there, dark or light."""

    name: str
    trace: str
    state: str
    keys: str = ""
    dark: bool = False


SHOTS: Final = (
    Shot("timeline", "bash", "view=timeline"),
    Shot("timeline-dark", "bash", "view=timeline", dark=True),
    Shot("call", "viewed", "view=timeline&call=12"),
    Shot("flame", "bash", "view=flame&order=heavy"),
    Shot("functions", "bash", "view=functions&sort=self"),
    Shot("graph", "viewed", "view=graph&function={weigh_all}"),
    Shot("modules", "bash", "view=modules"),
    Shot("stacks", "viewed", "view=stacks"),
    Shot("crash", "crash", "view=crash"),
    Shot("trace", "bash", "view=info"),
    Shot("help", "bash", "view=timeline", keys="?"),
)


def callscope(*arguments: str | Path) -> list[str]:
    """A command of this tree's callscope."""
    return [sys.executable, "-m", "callscope", *map(str, arguments)]


def record(directory: Path) -> None:
    """Make the traces bash, viewed and crash in a directory."""
    for name in ("viewed", "crash"):
        shutil.copy(ROOT / f"tests/targets/{name}.c", directory)
        compiler = ["gcc", "-g", "-O1", "-w", "-pthread", "-rdynamic", "-o", name, f"{name}.c"]
        subprocess.run(compiler, cwd=directory, check=True)
    programs: dict[str, list[str | Path]] = {
        "bash": ["bash", "-c", SCRIPT],
        "viewed": ["--args", "--stacks-at", "weigh_all", "./viewed"],
        "crash": ["./crash", "segv", "main"],
    }
    for name, command in programs.items():
        subprocess.run(callscope("record", "-o", f"{name}.trace", *command), cwd=directory, capture_output=True)
        session = directory / f"{name}.trace/session.json"
        told = json.loads(session.read_text())
        session.write_text(json.dumps(told | {"host": told["host"] | {"hostname": "box", "kernel": "Linux 6.1"}}))


@contextmanager
def viewing(trace: Path) -> Iterator[str]:
    """The address of a viewer."""
    with subprocess.Popen(
        callscope("view", "--no-browser", trace.name), cwd=trace.parent, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def function_ids(trace: Path) -> dict[str, int]:
    """The functions of a trace by name."""
    import pyarrow.parquet as pq

    rows = pq.read_table(trace / "calls/functions.parquet", columns=["name", "function_id"]).to_pylist()
    return {row["name"]: row["function_id"] for row in rows}


def take(browser: Browser, trace: Path, shots: list[Shot], directory: Path) -> None:
    """Write the pictures of one trace."""
    with viewing(trace) as url:
        for shot in shots:
            context = browser.new_context(
                viewport={"width": SIZE["width"], "height": SIZE["height"]},
                color_scheme="dark" if shot.dark else "light",
            )
            page = context.new_page()
            page.goto(url)
            page.goto(f"{page.url.partition('#')[0]}#{shot.state.format(**function_ids(trace))}")
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(SETTLED)
            for key in shot.keys:
                page.keyboard.press(key)
                page.wait_for_timeout(SETTLED)
            file = directory / f"{shot.name}.png"
            page.screenshot(path=str(file))
            context.close()
            if file.stat().st_size > LARGEST:
                raise SystemExit(f"{file} is larger than {LARGEST} bytes")


async def take_terminal(trace: Path, file: Path) -> None:
    """Write the picture of the call graph in a terminal."""
    sys.path.insert(0, str(ROOT / "src"))
    from callscope.reports.database import open_database
    from callscope.trace.open import open_trace
    from callscope.viewer.answers import Answers
    from callscope.viewer.terminal.app import ViewApp

    with open_database(trace) as database:
        answers = Answers(database, open_trace(trace))
        app = ViewApp(answers)
        async with app.run_test(size=TERMINAL) as pilot:
            await pilot.press("slash", *"weigh_all", "enter")
            await pilot.pause(SETTLED / 1000)
            await pilot.press("enter")
            await pilot.pause(SETTLED / 1000)
            picture = app.export_screenshot(simplify=True)
        answers.close()
    file.write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))  # fonts from the internet


def main() -> None:
    """Record, then take every picture."""
    from playwright.sync_api import sync_playwright

    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images"
    directory.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    with tempfile.TemporaryDirectory(prefix="callscope-") as temporary, sync_playwright() as playwright:
        record(Path(temporary))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for name in dict.fromkeys(shot.trace for shot in SHOTS):
            take(browser, Path(temporary) / f"{name}.trace", [s for s in SHOTS if s.trace == name], directory)
        browser.close()
        with ThreadPoolExecutor(1) as pool:  # Playwright has an event loop in this thread
            taken = take_terminal(Path(temporary) / "viewed.trace", directory / "terminal.svg")
            pool.submit(asyncio.run, taken).result()


if __name__ == "__main__":
    main()

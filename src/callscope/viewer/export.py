"""The page as one file that works without callscope: its modules in one script, the most important data beside them.

The page's modules import each other by name and declare no name twice, so they are joined by leaving `import` and
`export` out, in the order of their imports.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any, Final

from callscope.viewer.answers import Answers
from callscope.viewer.server import page_files
from callscope.viewer.timeline import Window

MOST_FUNCTIONS: Final = 5000
WALKED_FUNCTIONS: Final = 400
"""Functions with callers and callees: those with the largest totals."""
SITE_FUNCTIONS: Final = 100
"""Functions with call sites."""
MOST_THREADS: Final = 32
MOST_LANES: Final = 48
PIXELS: Final = 4000
"""Pixels of an exported timeline: it can be zoomed to about a third of the window that a screen shows."""
MOST_STACKS: Final = 50
MOST_PATHS: Final = 1000
"""Paths of one thread's flame graph."""

_IMPORT = re.compile(r'^import [^;]*? from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async |function |class |const |let )", re.MULTILINE)


def export_page(answers: Answers) -> bytes:
    """The page, UTF-8. Raises TraceError when tables are damaged."""
    files = {name: content.decode() for name, content in page_files().items()}
    script = f'"use strict";\n(() => {{\n{joined(files, "main.js")}\n}})();\n'
    style = files["style.css"]
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    icon = "data:image/svg+xml;base64," + base64.b64encode(files["icon.svg"].encode()).decode()
    page = files["index.html"]
    for old, new in {
        "<title>": f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<title>',
        '<link rel="icon" href="icon.svg">': f'<link rel="icon" href="{icon}">',
        '<link rel="stylesheet" href="style.css">': f"<style>{style}</style>",
        '<script type="module" src="main.js"></script>': '<script type="application/json" id="embedded">'
        f"{as_script_data(page_data(answers))}</script>\n<script>{script}</script>",
    }.items():
        before, found, after = page.partition(old)
        assert found, f"index.html has no {old}"
        page = before + new + after
    return page.encode()


def joined(files: dict[str, str], name: str, done: set[str] | None = None) -> str:
    """A module's text after those it imports, without imports and exports."""
    done = set() if done is None else done
    done.add(name)
    before = "".join(joined(files, other, done) for other in _IMPORT.findall(files[name]) if other not in done)
    return before + _EXPORT.sub("", _IMPORT.sub("", files[name]))


def as_script_data(value: Any) -> str:
    """JSON that ends no element and begins no comment."""
    return json.dumps(value, separators=(",", ":"), default=str).replace("<", "\\u003c").replace("&", "\\u0026")


def page_data(answers: Answers) -> dict[str, Any]:
    """The answers that an exported page has, by name, those about one function or thread by its number, too."""
    summary = answers.summary()
    top = answers.functions(limit=MOST_FUNCTIONS)
    numbers = [row["id"] for row in top["rows"][:WALKED_FUNCTIONS]]
    summary["threads"] = [thread for thread in summary["threads"] if thread["lanes"]][:MOST_THREADS]
    window = _calls_window(summary)
    for thread in summary["threads"]:
        thread["lanes"] = min(thread["lanes"], MOST_LANES)
    snapshots = answers.snapshots()
    return {
        "summary": summary,
        "functions": top,
        "function": {number: answers.function(number) for number in numbers},
        "sites": {number: answers.sites(number) for number in numbers[:SITE_FUNCTIONS]},
        "flame": answers.flame(),
        "flames": {
            thread["thread"]: answers.flame(most=MOST_PATHS, thread=thread["thread"])
            for thread in (summary["threads"] if len(summary["threads"]) > 1 else [])
        },
        "timeline": {thread["thread"]: answers.timeline(thread["thread"], window) for thread in summary["threads"]},
        "modules": answers.modules(),
        "snapshots": {**snapshots, "groups": snapshots["groups"][:MOST_STACKS]},
        "crash": answers.crash(),
    }


def _calls_window(summary: dict[str, Any]) -> Window:
    """From the first call to the last: programs take a while until they make any."""
    begin, end = 0, summary["end"]
    if summary["clock"] and summary["threads"]:
        begin = min(thread["first_ns"] for thread in summary["threads"])
        end = max(max(thread["end_ns"] or end for thread in summary["threads"]), begin) + 1
    return Window(begin, end, PIXELS, 0, MOST_LANES)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

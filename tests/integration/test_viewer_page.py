"""`callscope view` as a person uses it: in Chromium, driven by Playwright, on the trace of a real program."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from callscope.viewer.export import export_page
from tests.builders.calls_table import Call, Thread, TraceBuilder
from tests.builders.compilers import TARGETS, compile_program
from tests.builders.tracing import tool_environment
from tests.builders.viewer import opened, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()  # noqa: SIM905
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>\u202e"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """A page in which an error of a script fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 700}, color_scheme="light")
    made = context.new_page()
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield made
    context.close()
    assert errors == []


def callscope(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "callscope", *map(str, arguments)]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, plan_cache: Path) -> Path:
    directory = tmp_path_factory.mktemp("viewed")
    program = compile_program([TARGETS / "viewed.c"], directory / "viewed", ["-g", "-O1", "-pthread"])
    path = directory / "viewed.trace"
    command = callscope("record", "--args", "--stacks-at", "weigh_all", "-o", path, program)
    subprocess.run(command, check=True, env=tool_environment(plan_cache), capture_output=True, timeout=60)
    return path


@contextmanager
def viewing(page: "Page", trace: Path, cache: Path) -> Iterator[str]:
    """The address of a viewer, which must end well at Ctrl-C when the page has asked its last question."""
    command = callscope("view", "--no-browser", trace)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=tool_environment(cache)
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            yield process.stdout.readline().strip()
            page.goto("about:blank")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert "Traceback" not in process.stderr.read()


def report(trace: Path, cache: Path, *arguments: object) -> Any:
    command = callscope(*arguments[:1], trace, *arguments[1:], "--format", "json")
    done = subprocess.run(command, env=tool_environment(cache), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_looking_around(page: "Page", trace: Path, plan_cache: Path) -> None:
    functions = {row["function"]: row for row in report(trace, plan_cache, "report")}
    with viewing(page, trace, plan_cache) as url:
        page.goto(url)
        base = page.url
        assert "token" not in base
        # the timeline, and zooming in and out of it
        page.wait_for_selector("body[data-timeline]")
        whole = page.get_attribute("body", "data-timeline")
        assert whole is not None and re.fullmatch(r"\d+-\d+", whole)
        page.mouse.move(600, 200)
        page.mouse.wheel(0, -600)
        page.wait_for_function("whole => document.body.dataset.timeline !== whole", arg=whole)
        page.wait_for_url(re.compile("from="))
        for key in ("w", "d", "a", "s"):
            page.keyboard.press(key)
        page.keyboard.press("0")
        page.wait_for_function("whole => document.body.dataset.timeline === whole", arg=whole)
        # the table: all functions, sorted, searched
        page.keyboard.press("3")
        page.wait_for_selector("#functions tbody tr")
        assert int(page.get_attribute("body", "data-functions") or 0) == len(functions)
        page.click("#functions th:has-text('Calls') button")
        page.wait_for_url(re.compile("sort=calls"))
        page.wait_for_selector("#functions tbody tr:first-child:has-text('weigh')")
        page.keyboard.press("/")
        page.keyboard.type("weigh_a")
        page.wait_for_selector("body[data-functions='1']")
        row = page.inner_text("#functions tbody tr")
        assert "weigh_all" in row and f"{functions['weigh_all']['calls']:,}" in row
        # walking: a function, its caller, down again to the callee
        page.click("#functions tbody tr")
        page.wait_for_selector("#center h2:has-text('weigh_all')")
        page.click("#callers button:has-text('search')")
        page.wait_for_selector("#center h2:text-is('search')")
        card = page.inner_text("#center")
        assert f"{functions['search']['calls']:,}" in card
        page.click("#callees button:has-text('weigh_all')")
        page.wait_for_selector("#center h2:has-text('weigh_all')")
        page.click("#callees button:has-text('weigh')")
        page.wait_for_selector("#center h2:text-is('weigh')")
        # its source, at its line, and that of the place it was called from
        page.wait_for_selector(".source .here:has-text('volatile int sum')")
        page.click("#sites a")
        page.wait_for_selector(".source .here:has-text('sum += weigh')")
        # a call of it: where it is in the timeline, and what it was given
        page.wait_for_selector("#longest tbody tr")
        page.click("#longest tbody tr")
        page.wait_for_selector("#details h2:has-text('weigh')")
        details = page.inner_text("#details")
        assert "Arguments" in details and "times" in details and "50" in details
        page.click("#details dd a:has-text('weigh_all')")
        page.wait_for_selector("#details h2:has-text('weigh_all')")
        page.keyboard.press("p")
        page.wait_for_selector("#details h2:text-is('search')")
        # the browser's way back
        page.go_back()
        page.wait_for_selector("#details h2:has-text('weigh_all')")


def test_every_view_and_deep_links(page: "Page", trace: Path, plan_cache: Path) -> None:
    with viewing(page, trace, plan_cache) as url:
        page.goto(url)
        base = page.url.partition("#")[0]
        page.goto(f"{base}#view=flame")
        page.wait_for_selector("body[data-flame]")
        boxes = page.get_attribute("body", "data-flame")
        page.mouse.click(300, 108)  # the second row: the functions at the root, which fill it
        page.wait_for_url(re.compile("root="))
        page.keyboard.press("o")
        page.wait_for_url(re.compile("order=heavy"))
        page.keyboard.press("Backspace")
        page.click("button:has-text('By name')")
        assert boxes
        page.goto(f"{base}#view=flame")
        page.select_option("#flame-thread", index=2)
        page.wait_for_selector("body[data-flame-thread='2']")
        assert int(page.get_attribute("body", "data-flame") or 0) < int(boxes)
        page.go_back()
        page.wait_for_selector(f"body[data-flame='{boxes}']")
        for view, text in {
            "modules": "viewed",
            "stacks": "weigh_all",
            "crash": "did not crash",
            "info": "100.0 %",
        }.items():
            page.goto(f"{base}#view={view}")
            page.wait_for_selector(f"#view:has-text('{text}')")
        page.goto(f"{base}#view=functions&search=weigh&sort=name")
        page.wait_for_selector("body[data-functions='2']")
        page.reload()
        page.wait_for_selector("body[data-functions='2']")
        assert page.input_value("#search") == "weigh"
        page.goto(f"{base}#view=timeline&call=5")
        page.wait_for_selector("#details h2")
        page.goto(f"{base}#view=nonsense&from=-1&to=x&call=-9&root=-5")
        page.wait_for_selector("#tabs button[aria-selected='true']:has-text('Timeline')")
        page.keyboard.press("?")
        page.wait_for_selector("dialog[open]:has-text('Keyboard')")
        page.keyboard.press("Escape")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.keyboard.press("t")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        page.reload()
        page.wait_for_selector("html.dark", state="attached")


def test_the_system_chooses_light_or_dark(browser: "Browser", trace: Path, plan_cache: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    with viewing(page, trace, plan_cache) as url:
        page.goto(url)
        page.wait_for_selector("html.dark", state="attached")
    context.close()


def test_hostile_names_are_shown_as_text(page: "Page", tmp_path: Path) -> None:
    inner = Call(HOSTILE, 30_000)
    builder = TraceBuilder([Thread(1, (Call(f"{HOSTILE}!{HOSTILE}", 50_000, (inner, inner)),), name=HOSTILE)])
    builder.session["command"] = [HOSTILE]
    with opened(builder, tmp_path / "t.trace") as (_, answers), served(answers) as server:
        page.goto(server.url)
        page.wait_for_selector("body[data-timeline]")
        for view in ("timeline&call=1", "flame", "functions", "graph&function=1", "modules", "stacks", "crash", "info"):
            page.goto(f"{page.url.partition('#')[0]}#view={view}")
            page.wait_for_timeout(150)
            assert page.locator("#view img, #details img, #view script").count() == 0
        page.goto(f"{page.url.partition('#')[0]}#view=functions")
        page.wait_for_selector("#functions tbody tr")
        assert "<img src=x onerror=" in page.inner_text("#functions tbody tr >> nth=0")
        assert "\\u202e" in page.inner_text("#functions tbody tr >> nth=0")
        assert page.title() != "owned"


def test_an_exported_page_works_from_a_file(page: "Page", trace: Path, plan_cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    command = callscope("view", trace, "--export", file)
    subprocess.run(command, check=True, env=tool_environment(plan_cache), timeout=60)
    again = subprocess.run(command, capture_output=True, text=True, env=tool_environment(plan_cache), timeout=60)
    assert again.returncode == 2 and "--force" in again.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.startswith("http") else None)
    page.goto(f"file://{file}")
    page.wait_for_selector("body[data-timeline]")
    page.keyboard.press("3")
    page.wait_for_selector("#functions tbody tr:has-text('weigh_all')")
    page.fill("#search", "weigh_all")
    page.wait_for_selector("body[data-functions='1']")
    page.click("#functions tbody tr")
    page.click("#callers button:has-text('search')")
    page.wait_for_selector("#center h2:text-is('search')")
    page.wait_for_selector("#sites td:has-text('search')")
    page.keyboard.press("2")
    page.wait_for_selector("body[data-flame]")
    page.select_option("#flame-thread", index=2)
    page.wait_for_selector("body[data-flame-thread='2']")
    page.focus("#view")
    for key in "5678":
        page.keyboard.press(key)
        page.wait_for_selector("#view > *")
    assert page.is_hidden("#notice")
    assert asked == []
    assert "sum += item->weight" not in file.read_text()


def test_levels_that_are_not_shown_are_drawn_nowhere(page: "Page", tmp_path: Path) -> None:
    deep = Call("bottom", 1)
    for level in range(40):
        deep = Call(f"f{level}", 1, (deep,))
    threads = [Thread(1, (Call("main", 10**6, (deep,)),)), Thread(2, (Call("other", 10),))]
    with opened(TraceBuilder(threads), tmp_path / "t.trace") as (_, answers):
        (tmp_path / "t.html").write_bytes(export_page(answers))
    page.goto(f"file://{tmp_path}/t.html")
    page.wait_for_selector("body[data-timeline]")
    page.wait_for_timeout(200)
    colours = """(y) => {
      const canvas = document.querySelector("canvas.fill");
      const line = canvas.getContext("2d").getImageData(0, y, canvas.width, 1).data;
      return new Set(Array.from({ length: canvas.width }, (_, x) => line.slice(4 * x, 4 * x + 3).join())).size;
    }"""
    assert page.evaluate(colours, 24 + 22 + 15 * 18 + 9) > 1  # the last level of the first thread that is shown
    assert page.evaluate(colours, 24 + 22 + 16 * 18 + 6 + 22 + 3 * 18) == 1  # below the second thread's call

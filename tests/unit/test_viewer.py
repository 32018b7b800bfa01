"""The viewer's data: what the page shows is what the reports say, at every zoom; who may ask, and what."""

import http.client
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callscope.errors import TraceError
from callscope.reports import functions, graph
from callscope.reports.selection import Selection
from callscope.viewer.answers import Answers
from callscope.viewer.export import export_page, joined
from callscope.viewer.query import ROUTES
from callscope.viewer.server import ViewServer, page_files
from callscope.viewer.timeline import Window
from tests.builders.calls_table import Call, Thread, TraceBuilder, sample
from tests.builders.viewer import busy, opened, served

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e\x1b[31m\n<!--&amp;'\""
SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    with opened(sample(), tmp_path / "t.trace") as (_, found):
        yield found


def test_figures_are_those_of_the_reports(tmp_path: Path) -> None:
    with opened(sample(), tmp_path / "t.trace") as (database, answers):
        for sort in functions.ORDERS:
            expected = list(functions.as_json(functions.function_times(database, Selection(), sort)))
            rows = answers.functions(sort=sort)["rows"]
            assert [{key: value for key, value in row.items() if key != "id"} for row in rows] == expected
            assert answers.functions(sort=sort, reverse=True)["rows"] == rows[::-1]
        assert answers.functions(sort="name", offset=2, limit=3)["rows"] == answers.functions(sort="name")["rows"][2:5]
        found = answers.functions(search="WALK")
        assert [row["function"] for row in found["rows"]] == ["walk"] and found["count"] == 1
        whole = graph.as_json(graph.call_graph(database, Selection()))
        by_site = graph.as_json(graph.call_graph(database, Selection(), by_site=True))
        for node in whole["nodes"]:
            shown = answers.function(node["id"])
            assert shown is not None and shown["total_ns"] == node["total_ns"]
            for end, other in (("callers", "caller"), ("callees", "callee")):
                mine = "callee" if end == "callers" else "caller"
                edges = [edge for edge in whole["edges"] if edge[mine] == node["id"]]
                assert shown[end] == [
                    {"function": edge[other], "calls": edge["calls"], "total_ns": edge["total_ns"]} for edge in edges
                ]
            sites = [edge for edge in by_site["edges"] if edge["callee"] == node["id"]]
            assert [(row["call_site"], row["calls"]) for row in answers.sites(node["id"])] == [
                (edge["call_site"], edge["calls"]) for edge in sites
            ]
        assert answers.function(999) is None


def test_a_call_is_shown_with_those_it_is_in(tmp_path: Path) -> None:
    with opened(sample(), tmp_path / "t.trace") as (database, answers):
        rows = {row["call_id"]: row for row in database.rows("FROM calls")}
        for number, row in rows.items():
            call = answers.call(number)
            assert call is not None
            assert row.items() <= call.items()
            outer, parent = [], row["parent_id"]
            while parent is not None:
                outer.append(parent)
                parent = rows[parent]["parent_id"]
            assert [ancestor["call_id"] for ancestor in call["ancestors"]] == outer
        assert answers.call(len(rows)) is None and answers.call(-1) is None
        numbers = {row["function_id"] for row in rows.values()}
        for function in numbers:
            durations = [call["duration_ns"] for call in answers.longest_calls(function)]
            assert durations == sorted(
                (r["duration_ns"] for r in rows.values() if r["function_id"] == function), reverse=True
            )


@pytest.mark.parametrize("clock", [True, False])
def test_paths_weigh_what_is_below_them(tmp_path: Path, clock: bool) -> None:
    builder = busy(5, 400)
    builder.clock = clock
    with opened(builder, tmp_path / "t.trace") as (database, answers):
        rows = {row["node"]: row for row in database.rows("FROM nodes")}
        flame = answers.flame()
        own = "self_ns" if clock else "calls"

        def weight(node: int) -> int:
            return int(rows[node][own]) + sum(weight(n) for n, row in rows.items() if row["parent"] == node)

        assert flame["whole"] == sum(row[own] for row in rows.values())
        assert dict(zip(flame["node"], flame["weight"], strict=True)) == {node: weight(node) for node in rows}
        few = answers.flame(most=20)
        assert few["left_out"] == len(rows) - 20
        assert all(parent in (-1, *few["node"]) for parent in few["parent"])
        heaviest = few["node"][1]
        below = answers.flame(heaviest)
        assert below["node"][0] == heaviest and below["whole"] == weight(heaviest)
        assert answers.flame(10**6)["node"] == []


@pytest.mark.parametrize("clock", [True, False])
def test_paths_of_a_thread(tmp_path: Path, clock: bool) -> None:
    other = Call("main", 50, (Call("only", 7), Call("walk", 3)))
    builder = TraceBuilder([*sample().threads, Thread(9, (other,), pid=9)], clock=clock)
    with opened(builder, tmp_path / "t.trace") as (_, answers):
        whole = answers.flame()
        calls, weights = Counter[int](), Counter[int]()
        for thread in (1, 2, 3):
            one = answers.flame(thread=thread)
            calls.update(dict(zip(one["node"], one["calls"], strict=True)))
            weights.update(dict(zip(one["node"], one["weight"], strict=True)))
        assert calls == dict(zip(whole["node"], whole["calls"], strict=True))
        assert weights == dict(zip(whole["node"], whole["weight"], strict=True))
        names = [one["names"][number][0] for number in one["function"]]
        assert sorted(names) == ["main", "only", "walk"]
        assert one["whole"] == (60 if clock else 3)
        root = one["node"][names.index("only")]
        assert answers.flame(root, thread=3)["weight"] == [7 if clock else 1]
        assert answers.flame(root, thread=2)["node"] == answers.flame(thread=77)["node"] == []


def test_source_is_read_only_where_the_trace_names_it(tmp_path: Path) -> None:
    text = tmp_path / "walk.c"
    text.write_text("".join(f"line {number}\n" for number in range(1, 3000)))
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = sample().write(tmp_path / "t.trace")
    table = path / "calls/functions.parquet"
    rows = pq.read_table(table).to_pylist()
    for row, file in zip(rows, (text, tmp_path / "gone.c", tmp_path, "/dev/zero", "a\0b"), strict=False):
        row["file"], row["line"] = str(file), 1000
    pq.write_table(type(pq.read_table(table)).from_pylist(rows, pq.read_schema(table)), table)
    with opened(None, path) as (_, answers):
        found = answers.source(str(text), 1000)
        assert found["lines"][1000 - found["first"]] == "line 1000"
        assert len(found["lines"]) <= 800
        assert answers.source(str(text), 10**9)["lines"][-1] == "line 2999"
        for file in (secret, tmp_path / "gone.c", tmp_path, "/dev/zero", "a\0b", f"{text}/../secret", ""):
            with pytest.raises(TraceError):
                answers.source(str(file), 1)


@pytest.fixture
def server(answers: Answers) -> Iterator[ViewServer]:
    with served(answers) as found:
        yield found


def get(
    server: ViewServer,
    path: str,
    *,
    host: str | None = "",
    token: str | None = None,
    method: str = "GET",
    **headers: str,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        if host is not None:
            connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
        if token is not None:
            connection.putheader("Authorization", f"Bearer {token}")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_the_address_gives_a_cookie_that_opens_the_page(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    parts = urlsplit(server.url)
    status, _, headers = get(server, f"{parts.path}?{parts.query}")
    assert status == 303 and headers["Location"] == "/"
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    for path in ["/", "/main.js", "/style.css", "/icon.svg", "/api/summary"]:
        status, body, headers = get(server, path, Cookie=cookie.partition(";")[0])
        assert status == 200 and body, path
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
    assert get(server, "/api/summary", host=f"localhost:{server.server_port}", token=server.token)[0] == 200
    status, body, headers = get(server, "/", token=server.token, method="HEAD")
    assert status == 200 and not body and int(headers["Content-Length"]) > 100
    assert get(server, "/", token=server.token, method="POST")[0] == 501


@pytest.mark.parametrize(
    "path", ["/", "/main.js", "/api/summary", "/api/functions?search=x", "/nothing", "/../../etc/passwd"]
)
def test_without_the_token_nothing_is_told(server: ViewServer, path: str) -> None:
    for headers in (
        {},
        {"Cookie": f"{server.cookie}=wrong"},
        {"Cookie": f"{server.cookie}="},
        {"Cookie": "callscope-1=" + server.token},
        {"Cookie": "; ;=;\x01"},
        {"Authorization": f"Basic {server.token}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {server.token}x"},
        {"Authorization": "Bearer \xff"},
    ):
        status, body, answered = get(server, path, **headers)
        assert status == 403, headers
        assert body.startswith(b"Open the address") and "Set-Cookie" not in answered
    assert get(server, "/?token=" + "x" * len(server.token))[0] == 403
    assert get(server, "/?token=")[0] == 403


def test_other_hosts_are_refused(server: ViewServer) -> None:
    port = server.server_port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        "localhost",
        f"[::1]:{port}",
        f"127.0.0.1:{port}.evil.example",
        None,
    ):
        for path in ("/", "/api/summary", f"/?token={server.token}"):
            assert get(server, path, host=host, token=server.token)[0] == 403, host
    assert get(server, "/", host=f"127.0.0.1:{port}", token=server.token)[0] == 200
    assert get(server, "/", token=server.token, Host="evil.example")[0] == 403  # twice


@pytest.mark.parametrize("path", [
    "/nothing", "/api/nothing", "/api/", "/../answers.py", "/..%2fanswers.py", "/%2e%2e/answers.py", "/page/main.js",
    "/./main.js", "/etc/passwd", "/main.js/", "/__init__.py", "/main.js%00", "/api/../main.js",
])  # fmt: skip
def test_paths_outside_are_not_found(server: ViewServer, path: str) -> None:
    assert get(server, path, token=server.token)[0] == 404


WORDS = st.one_of(
    st.integers(-(1 << 70), 1 << 70).map(str),
    st.integers(0, 5).map(str),
    st.sampled_from(["", "total", "name", "1e9", "nan", "-0", "0x10", "٣", "' OR 1=1 --", "../../etc/passwd", HOSTILE]),
    st.text(max_size=20),
)
NAMES = st.sampled_from(
    [
        "thread",
        "from",
        "to",
        "pixels",
        "lane",
        "lanes",
        "id",
        "root",
        "search",
        "sort",
        "offset",
        "limit",
        "file",
        "line",
    ]
)


@SLOW
@given(st.sampled_from(sorted(ROUTES)), st.dictionaries(NAMES, WORDS, max_size=6))
def test_no_question_breaks_it(server: ViewServer, name: str, query: dict[str, str]) -> None:
    encoded = urlencode({key: value.encode("utf-8", "surrogatepass") for key, value in query.items()})
    status, body, _ = get(server, f"/api/{name}?{encoded}", token=server.token)
    assert status in (200, 400, 404, 422)
    answer = json.loads(body)
    assert status == 200 or list(answer) == ["error"]


@SLOW
@given(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.integers(1, 8192), st.integers(0, 40), st.integers(1, 256))
def test_any_window_is_answered_briefly(
    server: ViewServer, begin: int, span: int, pixels: int, lane: int, lanes: int
) -> None:
    query = {"thread": 1, "from": begin, "to": begin + span, "pixels": pixels, "lane": lane, "lanes": lanes}
    status, body, _ = get(server, f"/api/timeline?{urlencode(query)}", token=server.token)
    assert status == 200 and len(body) < 100_000


def test_names_are_only_data(tmp_path: Path) -> None:
    builder = TraceBuilder([Thread(1, (Call(f"{HOSTILE}!{HOSTILE}", 5, (Call(HOSTILE, 3),)),), name=HOSTILE)])
    builder.session["command"] = [HOSTILE]
    with opened(builder, tmp_path / "t.trace") as (_, answers):
        assert len(answers.functions(search="onerror")["rows"]) == 2
        page = export_page(answers).decode()
        assert page.count("</script>") == 2 and page.count("<!--") == 0 and page.count("<img") == 0
        with served(answers) as server:
            questions = ["summary", "functions", "flame", "call?id=0", "function?id=1", "sites?id=2", "longest?id=1"]
            questions += ["timeline?thread=1&from=0&to=100", "functions?search=" + quote(HOSTILE)]
            for question in questions:
                status, body, headers = get(server, f"/api/{question}", token=server.token)
                assert status == 200 and headers["Content-Type"] == "application/json"
                assert json.loads(body)


def test_the_page_never_makes_elements_of_texts() -> None:
    for name, content in page_files().items():
        text = content.decode()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http://",
            "https://",
        ):
            allowed = name == "icon.svg" and word == "http://"  # the namespace
            assert word not in text or allowed, f"{name} has {word}"
        assert content.count(b"\n") < 500
        assert " style=" not in text and " onclick=" not in text


def test_the_page_can_be_joined_to_one_script() -> None:
    files = {name: content.decode() for name, content in page_files().items()}
    script = joined(files, "main.js")
    assert not [line for line in script.splitlines() if line.startswith(("import ", "export "))]
    declared = [line.split("(")[0].split()[-1 if "function" in line else 1] for line in script.splitlines()
                if line.startswith(("function ", "async function ", "class ", "const ", "let "))]  # fmt: skip
    assert len(declared) > 50
    assert sorted({name for name in declared if declared.count(name) > 1}) == []
    for name in files:
        if name.endswith(".js"):
            assert files[name].splitlines()[0] in script


def test_an_exported_page_holds_the_figures(tmp_path: Path) -> None:
    with opened(sample(), tmp_path / "t.trace") as (_, answers):
        page = export_page(answers).decode()
        data = json.loads(page.partition('id="embedded">')[2].partition("</script>")[0])
        assert data["functions"] == answers.functions(limit=5000)
        assert data["flame"]["weight"] == answers.flame()["weight"]
        assert (
            "src="
            not in page.replace("default-src", "")
            .replace("script-src", "")
            .replace("style-src", "")
            .replace("img-src", "")
            .partition("<script")[0]
        )


def test_an_empty_thread_and_a_trace_without_clock(tmp_path: Path) -> None:
    builder = sample()
    builder.clock = False
    builder.threads.append(Thread(77, ()))
    with opened(builder, tmp_path / "t.trace") as (_, answers):
        summary = answers.summary()
        assert not summary["clock"]
        assert summary["end"] == max(thread["calls"] for thread in summary["threads"])
        assert [thread["lanes"] for thread in summary["threads"]][2] == 0
        view = answers.timeline(1, Window(0, summary["end"], 1000))
        assert view["calls"]["call"] == list(range(summary["threads"][0]["calls"]))
        call = answers.call(3)
        assert call is not None and call["order"] == 3 and call["duration_ns"] is None
        export_page(answers)

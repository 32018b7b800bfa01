"""The call graph, against one added up from the calls themselves."""

import json
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from callscope.cli.main import main
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built, sample

Graph = Callable[..., str]


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graph:
    """Run `callscope graph` on a trace: what it prints."""
    monkeypatch.setattr("callscope.reports.database.open_database", lambda path, progress=None: open_built(None, path))

    def run(*arguments: object, builder: TraceBuilder | None = None, status: int = 0) -> str:
        trace = tmp_path / "app.trace"
        shutil.rmtree(trace, ignore_errors=True)
        (builder or sample()).write(trace)
        assert main(["graph", str(trace), *map(str, arguments)]) == status
        captured = capsys.readouterr()
        return captured.out if status == 0 else captured.err

    return run


def added_up(calls: list[dict[str, object]]) -> tuple[Counter[str], Counter[tuple[str | None, str]]]:
    """Calls of each function, and of each pair."""
    names = {call["call_id"]: str(call["function"]) for call in calls}
    functions = Counter(names.values())
    pairs = Counter((names.get(call["parent_id"]), str(call["function"])) for call in calls)
    return functions, pairs


@pytest.mark.parametrize("filters", [[], ["--thread", "1001"], ["--from", "0ns"], ["--by-site"]])
def test_graph_is_what_the_calls_add_up_to(
    filters: list[str], graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(graph("--format", "json", *filters))
    thread = filters if "--thread" in filters else []
    assert main(["calls", str(tmp_path / "app.trace"), "--format", "json", *thread]) == 0
    calls = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    functions, pairs = added_up(calls)
    names = {node["id"]: node["function"] for node in found["nodes"]}
    assert {node["function"]: node["calls"] for node in found["nodes"]} == dict(functions)
    edges: Counter[tuple[str | None, str]] = Counter()
    for edge in found["edges"]:
        edges[names.get(edge["caller"]), names[edge["callee"]]] += edge["calls"]
        assert ("call_site" in edge) == ("--by-site" in filters)
    assert edges == pairs
    own = {node["function"]: node["self_ns"] for node in found["nodes"]}
    assert sum(own.values()) == sum(call["self_ns"] for call in calls)


def test_recursion_counts_once(graph: Graph) -> None:
    found = json.loads(graph("--format", "json", "-f", "walk"))
    (walk,) = [node for node in found["nodes"] if node["function"] == "walk"]
    assert (walk["calls"], walk["self_ns"], walk["total_ns"]) == (3, 1_700, 1_700 + 90 + 80)
    names = {node["id"]: node["function"] for node in found["nodes"]}
    edges = {(names.get(e["caller"]), names[e["callee"]]): (e["calls"], e["total_ns"]) for e in found["edges"]}
    assert edges["walk", "walk"] == (2, 0)
    assert edges["cmd_log", "walk"] == (1, 1_870)
    assert sorted(names.values()) == ["cmd_log", "visit", "walk"]


def test_text_has_callers_above_and_callees_below(graph: Graph) -> None:
    lines = [line.split()[-1] for line in graph("-f", "cmd_log", "-d", "0").splitlines()]
    assert lines[0] == "Function"
    place = lines.index("cmd_log")
    assert lines[place - 1] == "main"
    assert lines[place - 2] == "traced]"
    assert {"walk", "compare", "emit", "flush"} <= set(lines[place + 1 :])
    assert lines.count("[again]") == 1  # walk calls itself
    text = graph("--limit", "2")
    assert text.count("-" * 40) == 2
    assert "--limit 0 shows all" in text


def test_depth_module_share_and_window(graph: Graph) -> None:
    def names(*arguments: object) -> set[str]:
        return {node["function"] for node in json.loads(graph("--format", "json", *arguments))["nodes"]}

    assert names("-f", "visit") == {"visit", "walk"}
    assert names("-f", "visit", "-d", "2") == {"visit", "walk", "cmd_log"}
    assert names("--min-share", "90") == {"main", "wait_for_worker"}
    assert names("-m", "git") >= {"main", "work"}
    assert "no function is left" in graph("-m", "nothing*", status=1)
    assert "setup" not in names("--from", "43us")
    assert names("--until", "1ns") == {"main"}
    assert "was not called" in graph("-f", "work", "--thread", "1000", status=1)


def test_other_forms(graph: Graph) -> None:
    odd = Thread(1, (Call('op"<\\&>', 5, (Call("plain", 3),)),))
    dot = graph("--format", "dot", builder=TraceBuilder([odd]))
    assert dot.startswith("digraph calls {") and dot.endswith("}\n")
    assert '\\"<\\\\&>' in dot
    assert dot.count(" -> ") == 1
    mermaid = graph("--format", "mermaid", builder=TraceBuilder([odd]))
    assert "#quot;#lt;" in mermaid
    assert mermaid.count("-->") == 1
    tree = ET.fromstring(graph("--format", "graphml", builder=TraceBuilder([odd])))
    space = "{http://graphml.graphdrawing.org/xmlns}"
    values = [data.text for node in tree.iter(f"{space}node") for data in node if data.get("key") == "node_function"]
    assert values == ['op"<\\&>', "plain"]
    (edge,) = tree.iter(f"{space}edge")
    assert {data.get("key"): data.text for data in edge}["edge_calls"] == "1"


def test_without_a_clock_calls_count(graph: Graph) -> None:
    builder = sample()
    builder.clock = False
    text = graph("-f", "cmd_log", builder=builder)
    assert "Total" not in text
    assert "without a clock" in text
    nodes = json.loads(graph("--format", "json", builder=builder))["nodes"]
    assert [node["calls"] for node in nodes] == sorted((node["calls"] for node in nodes), reverse=True)
    assert all(node["total_ns"] is None for node in nodes)

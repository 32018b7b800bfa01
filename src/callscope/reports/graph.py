"""Who calls whom: functions and the calls between them, added up.

Recursion is merged: a function stands for all its calls, and time counts where it begins, not again in calls of the
same function inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from callscope.errors import TraceError
from callscope.globs import module_matches
from callscope.reports.database import Database
from callscope.reports.selection import Selection, check_calls, check_clock, condition, functions_matching

_FROM_NODES: Final = "SELECT node, -1 AS site, calls, total_ns, self_ns FROM nodes"
_FROM_CALLS: Final = """
SELECT node, {site} AS site, count(*) AS calls, sum(duration_ns)::BIGINT AS total_ns, sum(self_ns)::BIGINT AS self_ns
FROM call_rows WHERE {condition} GROUP BY ALL
"""
_EDGES: Final = """
SELECT p.function_id AS caller, n.function_id AS callee, g.site, sum(g.calls)::BIGINT AS calls,
       coalesce(sum(CASE WHEN n.outermost THEN g.total_ns END), 0)::BIGINT AS total_ns
FROM ({groups}) g JOIN nodes n ON n.node = g.node LEFT JOIN nodes p ON p.node = n.parent GROUP BY ALL
"""
_FUNCTIONS: Final = """
SELECT t.*, f.name, f.module, f.path FROM (
    SELECT n.function_id, sum(g.calls)::BIGINT AS calls,
           coalesce(sum(CASE WHEN n.outermost THEN g.total_ns END), 0)::BIGINT AS total_ns,
           sum(g.self_ns)::BIGINT AS self_ns
    FROM ({groups}) g JOIN nodes n ON n.node = g.node GROUP BY n.function_id
) t LEFT JOIN functions f ON f.function_id = t.function_id
"""


@dataclass(frozen=True)
class Window:
    """A stretch of time: calls that began in it. Nanoseconds since the recording began; end None: no end."""

    begin: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Node:
    """A function. Times in nanoseconds, zero in a trace without clock. path: of its module."""

    function: int
    name: str
    module: str | None
    path: str
    calls: int
    total_ns: int
    self_ns: int


@dataclass(frozen=True)
class Edge:
    """Calls of one function by another; caller None: by nothing that was traced. site: where from, if asked for."""

    caller: int | None
    callee: int
    calls: int
    total_ns: int
    site: str | None = None


@dataclass
class Graph:
    """Functions by id, and the calls between them, the most important first."""

    nodes: dict[int, Node]
    edges: list[Edge]
    has_clock: bool
    callers: dict[int, list[Edge]] = field(default_factory=dict)
    callees: dict[int, list[Edge]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for edge in self.edges:
            self.callers.setdefault(edge.callee, []).append(edge)
            if edge.caller is not None:
                self.callees.setdefault(edge.caller, []).append(edge)

    def weight(self, value: Node | Edge) -> int:
        """What counts: total time, or calls without a clock."""
        return value.total_ns if self.has_clock else value.calls


def call_graph(database: Database, selection: Selection, window: Window | None = None, by_site: bool = False) -> Graph:
    """The whole graph of the calls chosen (all but the functions of `selection`). Raises TraceError."""
    check_calls(database)
    chosen = replace(selection, functions=())
    groups = _FROM_NODES
    if chosen != Selection() or window is not None or by_site:
        terms = [condition(database, chosen)]
        if window is not None:
            check_clock(database)
            terms.append(f"start_ns >= {int(window.begin)}")
            terms += [f"start_ns < {int(window.end)}"] if window.end is not None else []
        groups = _FROM_CALLS.format(site="site" if by_site else "-1", condition=" AND ".join(terms))
    nodes = {row["function_id"]: _node(row) for row in database.rows(_FUNCTIONS.format(groups=groups))}
    sites = (
        {row["site"]: row["label"] for row in database.rows("SELECT site, label FROM site_labels")} if by_site else {}
    )
    edges = [
        Edge(row["caller"], row["callee"], row["calls"], row["total_ns"], sites.get(row["site"]))
        for row in database.rows(_EDGES.format(groups=groups))
    ]
    return _sorted(nodes, edges, database.has_clock)


def calls_by_site(database: Database, function: int) -> list[Edge]:
    """The calls of one function by the place they were made from, of all threads together."""
    groups = _FROM_CALLS.format(site="site", condition=f"function_id = {int(function)}")
    labels = {row["site"]: row["label"] for row in database.rows("SELECT site, label FROM site_labels")}
    found: dict[tuple[int | None, str | None], Edge] = {}
    for row in database.rows(_EDGES.format(groups=groups)):
        key = row["caller"], labels.get(row["site"])
        before = found.get(key, Edge(row["caller"], function, 0, 0, key[1]))
        found[key] = replace(before, calls=before.calls + row["calls"], total_ns=before.total_ns + row["total_ns"])
    return sorted(found.values(), key=lambda edge: (-edge.total_ns, -edge.calls, edge.caller or -1, edge.site or ""))


def narrowed(graph: Graph, modules: tuple[str, ...] = (), share: float = 0.0) -> Graph:
    """The functions of some modules (globs), and those with at least a share (0 to 1) of the largest weight there is.

    Raises TraceError when none is left.
    """
    least = share * max((graph.weight(node) for node in graph.nodes.values()), default=0)
    kept = {
        number: node
        for number, node in graph.nodes.items()
        if graph.weight(node) >= least and (not modules or any(module_matches(glob, node.path) for glob in modules))
    }
    if not kept:
        raise TraceError("no function is left: choose other modules, or a smaller share")
    return induced(graph, set(kept))


def induced(graph: Graph, functions: set[int]) -> Graph:
    """These functions and the calls between them; calls from elsewhere have no caller then."""
    edges = [
        edge if edge.caller in functions or edge.caller is None else replace(edge, caller=None)
        for edge in graph.edges
        if edge.callee in functions
    ]
    nodes = {number: node for number, node in graph.nodes.items() if number in functions}
    return _sorted(nodes, edges, graph.has_clock)


def around(graph: Graph, focus: list[int], depth: int) -> Graph:
    """The callers and callees of some functions, up to `depth` calls away (0: any)."""
    found = set(focus)
    for edges, end in ((graph.callers, "caller"), (graph.callees, "callee")):
        seen, edge_of = set(focus), set(focus)
        steps = 0
        while edge_of and (not depth or steps < depth):
            reached = {getattr(edge, end) for number in edge_of for edge in edges.get(number, [])} - seen - {None}
            seen |= reached
            edge_of = reached
            steps += 1
        found |= seen
    return induced(graph, found & graph.nodes.keys())


def focus_of(database: Database, graph: Graph, globs: tuple[str, ...]) -> list[int]:
    """The functions in the graph that any glob matches, the most important first. Raises TraceError."""
    found = [number for number in functions_matching(database, globs) if number in graph.nodes]
    if not found:
        raise TraceError(f"{', '.join(globs)} was not called by what was chosen: choose more")
    return sorted(found, key=lambda number: -graph.weight(graph.nodes[number]))


def as_json(graph: Graph) -> dict[str, Any]:
    """`nodes` and `edges`; times are None in a trace without clock."""
    times = graph.has_clock
    return {
        "nodes": [
            {
                "id": node.function,
                "function": node.name,
                "module": node.module,
                "calls": node.calls,
                "total_ns": node.total_ns if times else None,
                "self_ns": node.self_ns if times else None,
            }
            for node in graph.nodes.values()
        ],
        "edges": [
            {
                "caller": edge.caller,
                "callee": edge.callee,
                "calls": edge.calls,
                "total_ns": edge.total_ns if times else None,
                **({"call_site": edge.site} if edge.site is not None else {}),
            }
            for edge in graph.edges
        ],
    }


def _node(row: dict[str, Any]) -> Node:
    return Node(
        row["function_id"],
        row["name"] or "?",
        row["module"],
        row["path"] or row["module"] or "",
        row["calls"],
        row["total_ns"],
        row["self_ns"],
    )


def _sorted(nodes: dict[int, Node], edges: list[Edge], clock: bool) -> Graph:
    """A graph in a stable order: the heaviest first, then by name."""

    def weight(value: Node | Edge) -> tuple[int, int]:
        return (-value.total_ns, -value.calls) if clock else (-value.calls, 0)

    ordered = dict(sorted(nodes.items(), key=lambda item: (*weight(item[1]), item[1].name, item[0])))
    places = {number: place for place, number in enumerate(ordered)}

    def place(edge: Edge) -> tuple[int, int, int, int, str]:
        caller = -1 if edge.caller is None else places.get(edge.caller, -1)
        return (*weight(edge), caller, places.get(edge.callee, -1), edge.site or "")

    return Graph(ordered, sorted(edges, key=place), clock)


def walk(graph: Graph, start: int, depth: int, upwards: bool) -> Iterator[tuple[int, Edge, bool]]:
    """Calls from or to a function, depth first: (level from 1 on, edge, whether that function stands above already)."""
    edges, end = (graph.callers, "caller") if upwards else (graph.callees, "callee")
    stack: list[tuple[int, Edge, frozenset[int]]] = []

    def extend(level: int, number: int, path: frozenset[int]) -> None:
        stack.extend((level, edge, path) for edge in reversed(edges.get(number, [])))

    extend(1, start, frozenset([start]))
    while stack:
        level, edge, path = stack.pop()
        other = getattr(edge, end)
        again = other in path
        yield level, edge, again
        if other is not None and not again and (not depth or level < depth):
            extend(level + 1, other, path | {other})

"""A call graph as text, DOT, Mermaid and GraphML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from callscope.reports.database import Database
from callscope.reports.graph import Edge, Graph, Node, walk
from callscope.reports.selection import label
from callscope.reports.text import BOLD, DURATION_WIDTH, NO_CLOCK, Style, duration, duration_colour, printable

_INDENT = 2
_RULE = "-" * 40


def butterflies(
    database: Database, graph: Graph, focus: Sequence[int], depth: int, style: Style, limit: int = 0
) -> Iterator[str]:
    """For each function in `focus` its callers above, itself, and its callees below, up to `depth` calls away (0: any).

    The farthest callers come first, so that calls run down the page, as in gprof's call graph. A function that stands
    above on the same way is named once more and not followed.
    """
    names = _Names(database, graph, style)
    yield style.paint(names.heading(), BOLD)
    shown = focus[:limit] if limit else focus
    for number in shown:
        yield _RULE
        above = [names.edge(edge, edge.caller, level, again) for level, edge, again in walk(graph, number, depth, True)]
        yield from reversed(above)
        yield style.paint(names.node(graph.nodes[number]), BOLD)
        for level, edge, again in walk(graph, number, depth, False):
            yield names.edge(edge, edge.callee, level, again)
    if len(shown) < len(focus):
        yield style.comment(f"{len(focus) - len(shown):,} more functions: --limit 0 shows all")
    if not graph.has_clock:
        yield style.comment(NO_CLOCK)


class _Names:
    """Writes lines: total, own time, calls, name."""

    def __init__(self, database: Database, graph: Graph, style: Style) -> None:
        self._graph, self._style = graph, style
        self._own = database.only_module
        counts = [*(node.calls for node in graph.nodes.values()), *(edge.calls for edge in graph.edges)]
        self._width = max((len(style.count(count)) for count in counts), default=5)
        self._width = max(self._width, len("Calls"))

    def heading(self) -> str:
        times = f"{'Total':>{DURATION_WIDTH}}  {'Self':>{DURATION_WIDTH}}  " if self._graph.has_clock else ""
        return f"{times}{'Calls':>{self._width}}  Function"

    def node(self, node: Node) -> str:
        return self._line(node.total_ns, node.self_ns, node.calls, self._name(node.function))

    def edge(self, edge: Edge, number: int | None, level: int, again: bool) -> str:
        name = "[not traced]" if number is None else self._name(number)
        where = f" at {printable(edge.site)}" if edge.site else ""
        more = " [again]" if again else ""
        indent = " " * (_INDENT * level)
        return self._line(edge.total_ns, None, edge.calls, f"{indent}{name}{where}{more}")

    def _name(self, number: int) -> str:
        node = self._graph.nodes.get(number)
        room = (self._style.width or 0) - 2 * (DURATION_WIDTH + 2) - self._width - 2 - 2 * _INDENT
        return self._style.name(label(node.name, node.module, self._own), room) if node else "?"

    def _line(self, total: int, own: int | None, calls: int, name: str) -> str:
        count = f"{self._style.count(calls):>{self._width}}"
        if not self._graph.has_clock:
            return f"{count}  {name}"
        painted = self._style.paint(duration(total), *duration_colour(total))
        own_text = " " * DURATION_WIDTH if own is None else duration(own)
        return f"{painted}  {own_text}  {count}  {name}"


def _texts(database: Database, graph: Graph) -> dict[int, str]:
    own = database.only_module
    return {number: printable(label(node.name, node.module, own)) for number, node in graph.nodes.items()}


def _amount(value: Node | Edge, clock: bool) -> str:
    calls = f"{value.calls:,} x"
    return f"{calls}, {duration(value.total_ns).strip()}" if clock else calls


def dot(database: Database, graph: Graph) -> Iterator[str]:
    """Graphviz's language (https://graphviz.org/doc/info/lang.html): boxes darker with their share of the weight."""
    most = max((graph.weight(node) for node in graph.nodes.values()), default=0) or 1
    yield "digraph calls {"
    yield '  node [shape=box, style=filled, fontname="sans-serif"];'
    yield '  edge [fontname="sans-serif", fontsize=10];'
    for number, text in _texts(database, graph).items():
        node = graph.nodes[number]
        shade = 0.05 + 0.6 * graph.weight(node) / most
        name = _dot_quoted(f"{text}\n{_amount(node, graph.has_clock)}")
        yield f'  f{number} [label={name}, fillcolor="0.08 {shade:.2f} 1.0"];'
    for edge in graph.edges:
        if edge.caller is not None:
            text = _amount(edge, graph.has_clock) + (f"\n{printable(edge.site)}" if edge.site else "")
            yield f"  f{edge.caller} -> f{edge.callee} [label={_dot_quoted(text)}];"
    yield "}"


def _dot_quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def mermaid(database: Database, graph: Graph) -> Iterator[str]:
    """A Mermaid flowchart (https://mermaid.js.org/syntax/flowchart.html)."""
    yield "flowchart TD"
    for number, text in _texts(database, graph).items():
        yield f'  f{number}["{_mermaid_text(text)}<br>{_amount(graph.nodes[number], graph.has_clock)}"]'
    for edge in graph.edges:
        if edge.caller is not None:
            text = _amount(edge, graph.has_clock) + (f"<br>{_mermaid_text(printable(edge.site))}" if edge.site else "")
            yield f'  f{edge.caller} -->|"{text}"| f{edge.callee}'


def _mermaid_text(text: str) -> str:
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def graphml(database: Database, graph: Graph) -> Iterator[str]:
    """GraphML (http://graphml.graphdrawing.org/primer/graphml-primer.html): for yEd, Gephi, NetworkX."""
    keys = {
        "node": ("function", "module", "calls", "total_ns", "self_ns"),
        "edge": ("calls", "total_ns", "call_site"),
    }
    kinds = {"calls": "long", "total_ns": "long", "self_ns": "long"}
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
    for owner, names in keys.items():
        for name in names:
            kind = kinds.get(name, "string")
            yield f'  <key id="{owner}_{name}" for="{owner}" attr.name="{name}" attr.type="{kind}"/>'
    yield '  <graph edgedefault="directed">'
    for number, text in _texts(database, graph).items():
        node = graph.nodes[number]
        values: dict[str, object] = {"function": text, "module": node.module, "calls": node.calls}
        if graph.has_clock:
            values |= {"total_ns": node.total_ns, "self_ns": node.self_ns}
        yield f"    <node id={quoteattr(f'f{number}')}>{_data('node', values)}</node>"
    for edge in graph.edges:
        if edge.caller is not None:
            values = {"calls": edge.calls, "call_site": edge.site}
            if graph.has_clock:
                values["total_ns"] = edge.total_ns
            yield f'    <edge source="f{edge.caller}" target="f{edge.callee}">{_data("edge", values)}</edge>'
    yield "  </graph>"
    yield "</graphml>"


def _data(owner: str, values: dict[str, object]) -> str:
    return "".join(
        f'<data key="{owner}_{name}">{escape(printable(str(value)))}</data>'
        for name, value in values.items()
        if value is not None
    )


FORMS = {"dot": dot, "mermaid": mermaid, "graphml": graphml}

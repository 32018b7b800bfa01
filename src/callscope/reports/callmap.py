"""The static map of a binary's calls, and what traces saw happen at each of its call sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from callscope.binary.callsites import CALL, INDIRECT_CALL, INDIRECT_JUMP, KINDS, TAIL, Progress, find_call_sites
from callscope.binary.demangle import demangle
from callscope.binary.edges import data_targets
from callscope.binary.functions import find_functions
from callscope.binary.imports import import_names
from callscope.binary.open import open_image, unwinding
from callscope.binary.symbols import open_symbols
from callscope.errors import TraceError
from callscope.globs import NameGlob
from callscope.reports.database import Database
from callscope.reports.selection import label
from callscope.reports.text import BOLD, DIM, Style, plural, printable

_SEEN = """
SELECT s.rva, f.name, f.module, count(*) AS calls
FROM call_rows c JOIN sites s ON s.site = c.site JOIN functions f ON f.function_id = c.function_id
WHERE s.module = {module} GROUP BY ALL
"""


@dataclass
class Site:
    """A call site. address: of the instruction, in the image. target: what it goes to, by name, None when the code does
    not say; target_address: where a direct one goes. imported: the target is another module's. seen: calls by name of
    what was really called, empty without traces.
    """

    address: int
    kind: str
    target: str | None
    target_address: int | None
    imported: bool
    returns_to: int
    seen: Counter[str] = field(default_factory=Counter)


@dataclass
class Caller:
    """A function and its call sites. is_taken: something stores or computes its address, so that it may be called
    indirectly.
    """

    address: int
    size: int
    name: str
    is_taken: bool
    sites: list[Site]


@dataclass
class CallMap:
    """An image's functions in order of address. traces: how many were added."""

    path: Path
    functions: list[Caller]
    traces: int = 0

    @property
    def sites(self) -> Iterator[Site]:
        """All of them, in order of address."""
        for function in self.functions:
            yield from function.sites


def read_map(path: Path, progress: Progress | None = None) -> CallMap:
    """Map a program or library. Raises ImageError."""
    image = open_image(path)
    # without unwind information and symbols the linker's own functions are known by pointers to them only
    table = find_functions(image, image.relocated_code_pointers(), unwinding(image).frames)
    found = find_call_sites(image, table, progress)
    symbols = open_symbols(path)
    starts = table.rva.tolist()
    names = [name or f"{path.name}+{rva:#x}" for name, rva in zip(symbols.names(table.rva), starts, strict=True)]
    mangled = import_names(image)
    imports = dict(zip(mangled, demangle(list(mangled.values())), strict=True))
    taken = {*found.taken.tolist(), *image.relocated_code_pointers().tolist()}
    if image.is_fixed:
        taken.update(data_targets(image, 0, image.span).tolist())
    functions = [
        Caller(rva, size, name, rva in taken, [])
        for rva, size, name in zip(starts, table.size.tolist(), names, strict=True)
    ]
    owners = np.searchsorted(table.rva.astype(np.int64), found.sites["target"], side="right") - 1
    for row, owner in zip(found.sites.tolist(), owners.tolist(), strict=True):
        address, after, index, kind, target, slot = row
        imported = imports.get(slot if slot >= 0 else target)
        text = imported
        if imported is None and target >= 0:
            inside = owner >= 0 and target < starts[owner] + functions[owner].size
            offset = target - starts[owner] if inside else 0
            text = names[owner] + (f"+{offset:#x}" if offset else "") if inside else f"{path.name}+{target:#x}"
        place = target if target >= 0 else None
        functions[index].sites.append(Site(address, KINDS[kind], text, place, imported is not None, after))
    return CallMap(path, functions)


def add_trace(found: CallMap, database: Database) -> None:
    """Add what a trace saw at each site. Raises TraceError when it has nothing of this build of the image."""
    build_id = open_image(found.path).build_id.hex()
    modules = database.rows("SELECT DISTINCT path, build_id FROM modules")
    builds = {row["build_id"] for row in modules if PurePath(row["path"]).name == found.path.name}
    if builds and build_id not in builds:
        raise TraceError(f"{database.trace} is of another build of {found.path.name}: give the file that was recorded")
    rows = [row for row in database.rows(_SEEN.format(module=_quoted(found.path.name))) if row["rva"] is not None]
    if not rows:
        raise TraceError(f"{database.trace} has no calls made by {found.path.name}: record them with --module")
    seen: dict[int, Counter[str]] = {}
    for row in rows:
        name = label(row["name"] or "?", row["module"], found.path.name)
        seen.setdefault(row["rva"], Counter())[name] += row["calls"]
    for site in found.sites:
        site.seen.update(seen.get(site.returns_to, Counter()))
    found.traces += 1


def chosen(found: CallMap, globs: Sequence[str], never: bool) -> CallMap:
    """The functions that any glob matches (all without globs); `never`: only sites that no trace saw.

    Raises TraceError when no function matches.
    """
    functions = found.functions
    if globs:
        rules = [NameGlob(glob) for glob in globs]
        functions = [function for function in functions if any(rule.matches_name(function.name) for rule in rules)]
        if not functions:
            raise TraceError(f"no function of {found.path.name} matches {', '.join(globs)}")
    if never:
        functions = [
            Caller(f.address, f.size, f.name, f.is_taken, [site for site in f.sites if not site.seen])
            for f in functions
        ]
        functions = [function for function in functions if function.sites]
    return CallMap(found.path, functions, found.traces)


def as_json(found: CallMap) -> dict[str, Any]:
    """`image`, `traces`, `functions`, each with its `sites`; addresses are those in the image."""
    return {
        "image": str(found.path),
        "traces": found.traces,
        "functions": [
            {
                "address": function.address,
                "size": function.size,
                "name": function.name,
                "address_taken": function.is_taken,
                "sites": [
                    {
                        "address": site.address,
                        "kind": site.kind,
                        "target": site.target,
                        "target_address": site.target_address,
                        "imported": site.imported,
                        **({"seen": dict(site.seen.most_common())} if found.traces else {}),
                    }
                    for site in function.sites
                ],
            }
            for function in found.functions
        ],
    }


def text(found: CallMap, style: Style) -> Iterator[str]:
    """What there is in figures, then each function that calls with its sites."""
    kinds = Counter(site.kind for site in found.sites)
    imported = sum(site.imported for site in found.sites)
    yield f"{found.path}: {plural(len(found.functions), 'function')}, {plural(sum(kinds.values()), 'call site')}"
    for kind in (CALL, TAIL, INDIRECT_CALL, INDIRECT_JUMP):
        yield f"  {KINDS[kind]:<15}{kinds[KINDS[kind]]:>9,}"
    yield f"  {'to imports':<15}{imported:>9,}"
    if found.traces:
        calls = [site for site in found.sites if site.kind in (KINDS[CALL], KINDS[INDIRECT_CALL])]
        reached = sum(bool(site.seen) for site in calls)
        share = 1000 * reached // len(calls) / 10 if calls else 0.0
        yield f"  {'seen in traces':<15}{reached:>9,} of {len(calls):,} calls, {share} %"
    for function in found.functions:
        if not function.sites:
            continue
        yield ""
        taken = style.paint("  address taken", DIM) if function.is_taken else ""
        yield style.paint(f"{function.address:#010x}  {printable(function.name)}", BOLD) + taken
        for site in function.sites:
            yield _site_line(site, found.traces > 0, style)


def _site_line(site: Site, traced: bool, style: Style) -> str:
    target = printable(site.target) if site.target else "?"
    line = f"  {site.address:#010x}  {site.kind:<13}  {target}"
    if not traced:
        return line
    if not site.seen:
        return style.paint(f"{line}  never", DIM)
    if set(site.seen) == {site.target}:
        return f"{line}  {site.seen[site.target or '']:,} x"
    return f"{line}  " + ", ".join(f"{printable(name)} {count:,} x" for name, count in site.seen.most_common())


def dot(found: CallMap) -> Iterator[str]:
    """Graphviz's language: functions and imports, an edge for each pair, dashed where only traces know of it."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    edges: dict[tuple[int, int], tuple[int, bool]] = {}
    for function in found.functions:
        caller = number(function.name)
        for site in function.sites:
            for name, count in [*site.seen.items()] or ([(site.target, 0)] if site.target else []):
                pair = (caller, number(name))
                calls, is_known = edges.get(pair, (0, False))
                edges[pair] = (calls + count, is_known or name == site.target)
    yield "digraph map {"
    yield '  node [shape=box, fontname="sans-serif"];'
    for name, place in numbers.items():
        quoted = printable(name).replace("\\", "\\\\").replace('"', '\\"')
        yield f'  n{place} [label="{quoted}"];'
    for (caller, callee), (calls, is_known) in edges.items():
        notes = [f'label="{calls:,} x"'] if calls else []
        notes += [] if is_known else ["style=dashed"]
        yield f"  n{caller} -> n{callee}" + (f" [{', '.join(notes)}];" if notes else ";")
    yield "}"


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"

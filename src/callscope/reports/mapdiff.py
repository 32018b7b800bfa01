"""Two versions of a binary: which functions came, went and changed, and what they call now.

Functions belong together by name; where there is none by equal code, if no other function of either version has that;
then by what calls them: the same call sites, in order, of functions that belong together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from callscope.binary.fingerprints import fingerprints
from callscope.binary.open import open_image
from callscope.reports.callmap import Caller, CallMap
from callscope.reports.text import BOLD, DIM, Style, plural, printable

BY_NAME, BY_CODE, BY_CALLERS = "name", "code", "callers"
ROUNDS: Final = 32
"""of following calls from functions that belong together to others"""


@dataclass(frozen=True)
class Pair:
    """A function in both. matched_by: name, code or callers. is_changed: its code differs. added, removed: what it
    calls more or less often, by name: number of call sites.
    """

    before: Caller
    after: Caller
    matched_by: str
    is_changed: bool
    added: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class MapDifferences:
    """pairs: every function that is in both, in order of address before. gone, new: of one version only."""

    before: CallMap
    after: CallMap
    pairs: list[Pair]
    gone: list[Caller]
    new: list[Caller]

    @property
    def changed(self) -> list[Pair]:
        """Those whose code or callees differ."""
        return [pair for pair in self.pairs if pair.is_changed or pair.added or pair.removed]


def map_differences(before: CallMap, after: CallMap) -> MapDifferences:
    """Compare two maps of whole images. Raises ImageError when a file is gone."""
    codes = [_codes(side) for side in (before, after)]
    matches: dict[int, tuple[int, str]] = {}
    _match_names(before, after, matches)
    _match_codes(codes, matches)
    _match_callees(before, after, matches)
    names = {after.functions[place].name: before.functions[own].name for own, (place, _) in matches.items()}
    pairs = [
        _pair(before.functions[own], after.functions[place], how, codes[0][own] != codes[1][place], names)
        for own, (place, how) in sorted(matches.items())
    ]
    taken = {place for place, _ in matches.values()}
    gone = [function for place, function in enumerate(before.functions) if place not in matches]
    new = [function for place, function in enumerate(after.functions) if place not in taken]
    return MapDifferences(before, after, pairs, gone, new)


def _codes(found: CallMap) -> list[bytes]:
    starts, sizes = [f.address for f in found.functions], [f.size for f in found.functions]
    return fingerprints(open_image(found.path), starts, sizes)


def _is_named(found: CallMap, function: Caller) -> bool:
    return not function.name.startswith(f"{found.path.name}+0x")


def _unique(keys: dict[int, Any]) -> dict[Any, int]:
    """By key, the only place that has it."""
    counts = Counter(keys.values())
    return {key: place for place, key in keys.items() if counts[key] == 1}


def _match_names(before: CallMap, after: CallMap, matches: dict[int, tuple[int, str]]) -> None:
    """Names that several functions have (static ones of several files) go by their order."""
    sides = []
    for side in (before, after):
        places: dict[str, list[int]] = defaultdict(list)
        for place, function in enumerate(side.functions):
            if _is_named(side, function):
                places[function.name].append(place)
        sides.append(places)
    for name, own in sides[0].items():
        for place, other in zip(own, sides[1].get(name, ()), strict=False):
            matches[place] = (other, BY_NAME)


def _match_codes(codes: list[list[bytes]], matches: dict[int, tuple[int, str]]) -> None:
    taken = {place for place, _ in matches.values()}
    free = [
        _unique({place: code for place, code in enumerate(side) if place not in used})
        for side, used in zip(codes, (matches.keys(), taken), strict=True)
    ]
    for code, place in free[0].items():
        if code in free[1]:
            matches[place] = (free[1][code], BY_CODE)


def _match_callees(before: CallMap, after: CallMap, matches: dict[int, tuple[int, str]]) -> None:
    """Call sites of functions that belong together, as many and of the same kinds: their targets belong together."""
    places = [{function.name: place for place, function in enumerate(side.functions)} for side in (before, after)]
    taken = {place for place, _ in matches.values()}
    for _ in range(ROUNDS):
        found = 0
        for own, (other, _how) in list(matches.items()):
            sites, others = before.functions[own].sites, after.functions[other].sites
            if [site.kind for site in sites] != [site.kind for site in others]:
                continue
            for site, counterpart in zip(sites, others, strict=True):
                callee, candidate = places[0].get(site.target or ""), places[1].get(counterpart.target or "")
                if callee is None or candidate is None or callee in matches or candidate in taken:
                    continue
                matches[callee] = (candidate, BY_CALLERS)
                taken.add(candidate)
                found += 1
        if not found:
            return


def _pair(before: Caller, after: Caller, how: str, is_changed: bool, names: dict[str, str]) -> Pair:
    old = Counter(site.target for site in before.sites if site.target)
    now = Counter(names.get(site.target, site.target) for site in after.sites if site.target)
    return Pair(before, after, how, is_changed, now - old, old - now)


def as_json(found: MapDifferences) -> dict[str, Any]:
    """`before`, `after` (paths), `gone`, `new` and `changed` functions, `same`: how many are alike."""

    def one(function: Caller) -> dict[str, Any]:
        return {"name": function.name, "address": function.address, "size": function.size}

    return {
        "before": str(found.before.path),
        "after": str(found.after.path),
        "same": len(found.pairs) - len(found.changed),
        "gone": [one(function) for function in found.gone],
        "new": [one(function) for function in found.new],
        "changed": [
            {
                "before": one(pair.before),
                "after": one(pair.after),
                "matched_by": pair.matched_by,
                "code": pair.is_changed,
                "calls_added": dict(pair.added),
                "calls_removed": dict(pair.removed),
            }
            for pair in found.changed
        ],
    }


def text(found: MapDifferences, style: Style) -> Iterator[str]:
    """Figures, then the functions that changed, went and came."""
    changed = found.changed
    how = Counter(pair.matched_by for pair in found.pairs)
    yield f"- {found.before.path}: {plural(len(found.before.functions), 'function')}"
    yield f"+ {found.after.path}: {plural(len(found.after.functions), 'function')}"
    ways = ", ".join(f"{how[way]:,} by {way}" for way in (BY_NAME, BY_CODE, BY_CALLERS) if how[way])
    yield f"  in both {len(found.pairs):,}" + (f" ({ways})" if ways else "") + f", changed {len(changed):,}"
    for pair in changed:
        yield ""
        other = "" if pair.before.name == pair.after.name else f", now {printable(pair.after.name)}"
        size = pair.after.size - pair.before.size
        note = f"  {size:+,} bytes" if size else ""
        yield style.paint(printable(pair.before.name), BOLD) + other + style.paint(note, DIM)
        yield from (f"  - {count} x {printable(name)}" for name, count in sorted(pair.removed.items()))
        yield from (f"  + {count} x {printable(name)}" for name, count in sorted(pair.added.items()))
    for title, mark, functions in (("Gone", "-", found.gone), ("New", "+", found.new)):
        if functions:
            yield ""
            yield style.paint(title, BOLD)
            yield from (f"{mark} {f.address:#010x}  {printable(f.name)}" for f in functions)

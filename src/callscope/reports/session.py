"""What session.json says, in the types that reports rely on: it is a file, and files may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = ("entries", "exits", "tails")


def checked(session: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that reports show; what has another type than it should is None or empty.

    images: dicts with path, build_id, function_count and coverage, a dict of kind ('entries', 'exits', 'tails') to dict
    of 'patched' and 'found'. rejected: dicts of path and reason.
    """
    host = _mapping(session.get("host"))
    return {
        "status": _text(session.get("status")),
        "callscope": _text(session.get("callscope")),
        "command": _texts(session.get("command")),
        "cwd": _text(session.get("cwd")),
        "host": {name: _text(host.get(name)) for name in ("hostname", "kernel", "machine")}
        | {"cpus": _number(host.get("cpus"))},
        "started": _text(session.get("started")),
        "exit_status": _number(session.get("exit_status")),
        "main_pid": _number(session.get("main_pid")),
        "options": _mapping(session.get("options")),
        "clock_hz": _frequency(_mapping(session.get("clock"))),
        "resolution_ns": _resolution(_mapping(session.get("clock")), _mapping(session.get("options"))),
        "images": [_image(entry) for entry in _mappings(session.get("images"))],
        "rejected": [
            {"path": _text(entry.get("path")) or "?", "reason": _text(entry.get("reason")) or "?"}
            for entry in _mappings(session.get("rejected"))
        ],
    }


def _image(entry: Mapping[str, Any]) -> dict[str, Any]:
    coverage = _mapping(entry.get("coverage"))
    parts = {kind: _mapping(coverage.get(kind)) for kind in _KINDS}
    return {
        "path": _text(entry.get("path")),
        "build_id": _text(entry.get("build_id")),
        "function_count": _number(entry.get("function_count")),
        "coverage": {
            kind: {"patched": patched, "found": found}
            for kind, part in parts.items()
            if (patched := _number(part.get("patched"))) is not None
            and (found := _number(part.get("found"))) is not None
        },
    }


def _frequency(clock: Mapping[str, Any]) -> float | None:
    """Ticks of the clock a second, from its readings at start and end."""
    start, end = _mapping(clock.get("start")), _mapping(clock.get("end"))
    numbers = [_number(pair.get(name)) for name in ("tsc", "monotonic_ns") for pair in (start, end)]
    first_tick, last_tick, first_ns, last_ns = numbers
    if first_tick is None or last_tick is None or first_ns is None or last_ns is None or last_ns <= first_ns:
        return None
    return (last_tick - first_tick) * 1e9 / (last_ns - first_ns)


def _resolution(clock: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    """Nanoseconds between two ticks of the coarse clock, on the average; None for other clocks. While it is recorded
    what was aimed at, or 0 where that is not known.
    """
    if options.get("clock") != "coarse":
        return None
    coarse = _mapping(clock.get("coarse"))
    start, end = (_number(_mapping(clock.get(name)).get("monotonic_ns")) for name in ("start", "end"))
    ticks = _number(coarse.get("ticks"))
    if start is None or end is None or not ticks or end <= start:
        return _number(coarse.get("interval_ns")) or 0
    return (end - start) // ticks


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

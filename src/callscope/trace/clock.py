"""Time-stamp counter -> nanoseconds since the session's start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from callscope.clock import ClockPair

TICK_SHIFT = 40
_LEAST_NS = 100_000
_SLOWEST, _FASTEST = 0.02, 100.0


@dataclass(frozen=True)
class TraceClock:
    """A line through two moments: nanoseconds = (tsc - origin) * scale / 2^TICK_SHIFT.

    realtime_ns: since 1970, at the origin; None when unknown. tick_limit: no time of the trace may be further from the
    origin; what is, is damage. is_guessed: the counter's rate is not known, and one tick is taken for a nanosecond.
    """

    origin: int
    scale: int
    realtime_ns: int | None = None
    is_guessed: bool = False

    @property
    def tick_limit(self) -> int:
        """Ticks; keeps all nanoseconds well inside 63 bits."""
        return min((1 << 61 << TICK_SHIFT) // self.scale, 1 << 58)

    def ns(self, tsc: int) -> int:
        """Nanoseconds since the session's start, negative before it; times beyond the tick limit are held at it."""
        ticks = max(-self.tick_limit, min(tsc - self.origin, self.tick_limit))
        return ticks * self.scale >> TICK_SHIFT

    def when(self, tsc: int) -> datetime | None:
        """The moment in UTC, or None when unknown."""
        if self.realtime_ns is None:
            return None
        try:
            return datetime.fromtimestamp((self.realtime_ns + self.ns(tsc)) / 1e9, UTC)
        except (ValueError, OverflowError, OSError):
            return None


def make_clock(start: ClockPair | None, end: ClockPair | None, others: Sequence[ClockPair], first_tsc: int,
               warnings: list[str]) -> TraceClock:  # fmt: skip
    """The clock of a session.

    start, end: from session.json. others: from the journal, used when one of them is missing or the two make no sense.
    first_tsc: the origin when there is no pair at all.
    """
    pairs = sorted([pair for pair in (start, end, *others) if pair is not None], key=lambda pair: pair.tsc)
    origin = start or (pairs[0] if pairs else None)
    candidates = [(start, end)] if start and end else []
    if pairs:
        candidates += [(pairs[0], pairs[-1])]
    for a, b in candidates:
        rate = _ns_a_tick(a, b)
        if rate is not None and origin is not None:
            return TraceClock(origin.tsc, rate, origin.realtime_ns)
    warnings.append("the speed of the clock is unknown: times are in ticks of the processor, not nanoseconds")
    return TraceClock(
        origin.tsc if origin else first_tsc, 1 << TICK_SHIFT, origin.realtime_ns if origin else None, True
    )


def _ns_a_tick(a: ClockPair, b: ClockPair) -> int | None:
    """Scaled by 2^TICK_SHIFT; None when the pairs are too close for a rate, or make no sense."""
    ticks, elapsed = b.tsc - a.tsc, b.monotonic_ns - a.monotonic_ns
    if ticks <= 0 or elapsed < _LEAST_NS or not _SLOWEST < elapsed / ticks < _FASTEST:
        return None
    return (elapsed << TICK_SHIFT) // ticks

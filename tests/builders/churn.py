"""What a trace of tests/targets/churn.c holds."""

from pathlib import Path

import callscope


def bursts(trace: Path) -> tuple[int, int]:
    """Calls of burst() that ended, and those among them with ten calls of work()."""
    with callscope.open(trace) as tables:
        query = (
            "SELECT count(*), count(*) FILTER (n = 10) FROM (SELECT b.call_id, count(w.call_id) AS n FROM calls b "
            "LEFT JOIN calls w ON w.parent_id = b.call_id WHERE b.function = 'burst' AND b.ended_by = 'return' "
            "GROUP BY b.call_id)"
        )
        ended, full = tables.sql(query).fetchall()[0]
        return int(ended), int(full)

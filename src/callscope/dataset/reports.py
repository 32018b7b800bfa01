"""Questions to a data set: one SQL text each, in what DuckDB and Spark have in common.

The table `calls` has the columns of callscope.dataset.collect; times are nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_TOTAL = "sum(CASE WHEN outermost THEN duration_ns ELSE 0 END)"
_EXPONENT = "(length(bin(CASE WHEN duration_ns < 1 THEN 1 ELSE duration_ns END)) - 1)"
_BUCKET = f"""CASE WHEN duration_ns < 32 THEN duration_ns
        ELSE CAST(floor(duration_ns / pow(2, {_EXPONENT} - 4)) * pow(2, {_EXPONENT} - 4) AS BIGINT) END"""
"""The lower bound of a bucket: 16 to every power of two."""


@dataclass(frozen=True)
class DatasetReport:
    """A question. sql: with `{where}`, a condition on calls, and `{limit}`."""

    name: str
    summary: str
    sql: str


REPORTS: Final = {
    report.name: report
    for report in (
        DatasetReport(
            "functions",
            "functions by total time; a recursion's inner calls are not counted again",
            f"""
SELECT t.function, t.module, t.calls, t.total_ns, t.self_ns, t.min_ns, t.max_ns, p.p99_ns
FROM (SELECT function, module, count(*) AS calls, CAST({_TOTAL} AS BIGINT) AS total_ns,
             CAST(sum(self_ns) AS BIGINT) AS self_ns, min(duration_ns) AS min_ns, max(duration_ns) AS max_ns
      FROM calls WHERE {{where}} GROUP BY function, module) t
JOIN (SELECT function, module, min(bucket) AS p99_ns
      FROM (SELECT function, module, bucket,
                   sum(calls) OVER (PARTITION BY function, module ORDER BY bucket) AS below,
                   sum(calls) OVER (PARTITION BY function, module) AS every
            FROM (SELECT function, module, {_BUCKET} AS bucket, count(*) AS calls FROM calls WHERE {{where}}
                  GROUP BY function, module, {_BUCKET}) buckets) ranked
      WHERE below * 100 >= every * 99 GROUP BY function, module) p
ON p.function = t.function AND p.module = t.module
ORDER BY t.total_ns DESC, t.function, t.module LIMIT {{limit}}
""",
        ),
        DatasetReport(
            "edges",
            "who calls whom, by total time",
            f"""
SELECT caller, caller_module, function, module, count(*) AS calls, CAST({_TOTAL} AS BIGINT) AS total_ns
FROM calls WHERE {{where}} GROUP BY caller, caller_module, function, module
ORDER BY total_ns DESC, function, module, caller, caller_module LIMIT {{limit}}
""",
        ),
        DatasetReport(
            "processes",
            "hosts, programs and processes: calls, functions, own time of all, begin and end",
            """
SELECT host, program, pid, trace, count(*) AS calls, count(DISTINCT concat(module, '!', function)) AS functions,
       CAST(sum(self_ns) AS BIGINT) AS self_ns, min(start_utc_ns) AS first_utc_ns,
       max(start_utc_ns + duration_ns) AS last_utc_ns
FROM calls WHERE {where} GROUP BY host, program, pid, trace
ORDER BY calls DESC, host, program, pid, trace LIMIT {limit}
""",
        ),
        DatasetReport(
            "longest",
            "the longest single calls",
            """
SELECT duration_ns, function, module, host, program, pid, tid, start_utc_ns, trace, call_id
FROM calls WHERE {where} ORDER BY duration_ns DESC, trace, call_id LIMIT {limit}
""",
        ),
    )
}


def text_of(report: DatasetReport, limit: int, host: str | None = None, program: str | None = None) -> str:
    """The SQL of a report: at most `limit` rows, of one host or program if that is given."""
    terms = [f"{name} = {_literal(value)}" for name, value in (("host", host), ("program", program)) if value]
    return report.sql.format(where=" AND ".join(terms) or "true", limit=limit)


def _literal(text: str) -> str:
    """A string literal that means the same in both: Spark gives a backslash a meaning, names of hosts have none."""
    return "'" + text.replace("\\", "").replace("'", "''") + "'"

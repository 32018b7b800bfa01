"""What integration tests share: one plan cache for the whole run, and the totals of the random programs."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plan_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan cache for this run of the tests, all workers together: plans of an older planner prove nothing."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    directory = shared / "plan-cache"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    rows = [dict(report.user_properties)["truth"] for report in reports if "truth" in dict(report.user_properties)]
    if rows:
        calls, parents, endings, skipped = (sum(column) for column in zip(*rows, strict=True))
        terminalreporter.write_line(
            f"random programs: {len(rows)} runs, {calls:,} calls, {parents} wrong parents, {endings} wrong endings, "
            f"{skipped:,} calls of unpatched functions left out"
        )

"""`callscope plan`: what of a binary can be traced, and what not, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from callscope.cli.output import Output, output_options, progress_bar
from callscope.patching.cache import load_or_plan
from callscope.patching.report import Coverage, PlanReport
from callscope.patching.scope import FUNCTIONS, Scope

_SHOWN = 20


def _lines(report: PlanReport, everything: bool, cached: bool, seconds: float) -> list[str]:
    took = f"planned before; read in {seconds:.2f} s" if cached else f"planned in {seconds:.2f} s"
    lines = [f"{report.image}: {report.functions:,} functions, {took}", ""]
    kinds = [("entries", report.entries), ("exits", report.exits), ("tail jumps", report.tail_jumps)]
    if report.calls.found:
        kinds += [("call sites", report.calls), ("their ends", report.returns)]
    lines += [f"  {name:<11}{found(coverage)}" for name, coverage in kinds]
    for name, coverage in kinds:
        if coverage.skipped:
            shown = coverage.skipped if everything else coverage.skipped[:_SHOWN]
            lines += ["", f"{name} not patched:"]
            lines += [f"  {skipped.address:#010x}  {skipped.function}: {skipped.reason}" for skipped in shown]
            if len(shown) < len(coverage.skipped):
                lines.append(f"  ... and {len(coverage.skipped) - len(shown)} more (--all shows them)")
    return lines


def found(coverage: Coverage) -> str:
    """One line: how many of how many are patched."""
    return f"{coverage.patched:>9,} of {coverage.found:>9,} patched  {coverage.percent:6.2f} %"


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="List every place that is not patched.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes to plan with (default: one a core).")
@click.option("--calls", is_flag=True, help="Plan call sites too, as `record --calls` does.")
@click.option("--fresh", is_flag=True, help="Plan again even if a plan is kept.")
@output_options
def plan(image: Path, everything: bool, jobs: int | None, calls: bool, fresh: bool, output: Output) -> None:
    """Say which functions IMAGE holds and what of them can be traced.

    IMAGE is a program or a shared library, or the name of a program on the PATH. Everything that cannot be patched is
    listed with its reason.
    """
    path = find_image(image)
    with progress_bar(f"planning {path.name}") as progress:
        files = load_or_plan(path, jobs, progress, fresh, Scope("leaving") if calls else FUNCTIONS)
    report = files.read_report()
    if output.json:
        data: dict[str, Any] = report.to_json() | {"image": str(path), "seconds": round(files.seconds, 3)}
        output.write_json(data | {"cached": files.cached})
    else:
        output.write_lines(_lines(report, everything, files.cached, files.seconds))


def find_image(image: Path) -> Path:
    """A path as given, or a program's place on the PATH when it is a bare name that is no file here."""
    import shutil

    if not image.exists() and image.name == str(image) and (program := shutil.which(image.name)):
        return Path(program)
    return image

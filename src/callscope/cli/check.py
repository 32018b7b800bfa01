"""`callscope check`: how a program was built, and what would show more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from callscope.binary.built import Build, read_build
from callscope.cli.output import Output, output_options
from callscope.cli.plan import find_image

_KINDS = {
    "exec": "program at a fixed address",
    "pie": "position-independent program",
    "shared": "shared library",
    "static": "statically linked program",
    "program": "Windows program",
    "library": "Windows library",
}
_MOST = 0.8
_SOME = 0.05


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@output_options
def check(image: Path, output: Output) -> None:
    """Say how IMAGE was built, and with what flags a recording would show more.

    IMAGE is a program or a shared library, or the name of a program on the PATH.
    """
    build = read_build(find_image(image))
    if output.json:
        facts = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(build).items()}
        output.write_json(facts | {"advice": list(advice(build))})
    else:
        output.write_lines(lines(build))


def lines(build: Build) -> Iterator[str]:
    """The answer as text."""
    yield f"{build.path}: {_KINDS[build.kind]}, {build.functions:,} functions"
    yield ""
    for name, value in facts(build):
        yield f"  {name:<16}{value}"
    more = list(advice(build))
    yield ""
    yield (
        "It can be recorded as it is; more is seen with:"
        if more and build.kind != "static"
        else ("It cannot be recorded:" if more else "Nothing would show more.")
    )
    for line in more:
        yield f"  {line}"


def facts(build: Build) -> Iterator[tuple[str, str]]:
    """(name, value) of what was found."""
    hooks = "no"
    if build.instrumented:
        hooks = "-finstrument-functions, with hooks of its own" if build.own_hooks else "-finstrument-functions"
    yield "instrumented", hooks
    yield "profiled", f"-pg (calls {build.profiled})" if build.profiled else "no"
    yield "patchable", "-fpatchable-function-entry" if build.patchable else "no"
    debug = {"file": "yes", "separate": f"in {build.debug_file}", "": "no"}[build.debug]
    yield "debug info", debug
    yield "symbols", "stripped" if build.stripped else "yes"
    share = build.frame_pointers
    yield "frame pointers", "yes" if share > _MOST else f"in {share:.0%} of functions" if share > _SOME else "no"
    marks = [name for name, has in (("IBT", build.branch_tracking), ("SHSTK", build.shadow_stack)) if has]
    yield "CET", ", ".join(marks) or "no"
    yield "build-id", build.build_id or "none"


def advice(build: Build) -> Iterator[str]:
    """What to build with, and what that shows; for a static program why it cannot be recorded."""
    if build.kind == "static":
        yield "link it dynamically (without -static): only programs that a loader starts can be recorded"
        return
    if build.own_hooks:
        yield "no hooks of its own (__cyg_profile_func_enter): inlined calls, which they get instead"
    elif not build.instrumented and build.format == "elf":
        yield "-finstrument-functions: inlined calls"
    if not build.debug:
        yield "-g, or its debug file installed: files and lines, arguments and results by name (--args)"
    if build.stripped and build.debug != "separate":
        yield "its symbols (no strip, no -s): names of functions that it does not export"

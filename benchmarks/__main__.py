"""`python -m benchmarks [TOPIC ...]`: measure, print tables, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.attaching import attaching
from benchmarks.budget import budget
from benchmarks.bytecode import bytecode
from benchmarks.calls import calls, windows
from benchmarks.captures import arguments as capture_arguments
from benchmarks.captures import sites
from benchmarks.churn import churn
from benchmarks.harness import Table, machine
from benchmarks.hooks import hooks
from benchmarks.planning import planning, start
from benchmarks.programs import programs
from benchmarks.python import python
from benchmarks.reading import reading
from benchmarks.stacks import sampling, stacks
from benchmarks.viewing import viewing

TOPICS: dict[str, Callable[[Path, int], Table]] = {
    "calls": calls,
    "windows": windows,
    "arguments": capture_arguments,
    "sites": sites,
    "hooks": hooks,
    "budget": budget,
    "python": python,
    "bytecode": bytecode,
    "programs": programs,
    "planning": planning,
    "start": start,
    "attach": attaching,
    "reading": reading,
    "viewing": viewing,
    "stacks": stacks,
    "sampling": sampling,
    "churn": churn,
}


def main() -> int:
    """Run the topics asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="times each thing is measured (default: 5)")
    parser.add_argument("--output", type=Path, help="write the figures to this file, as JSON")
    parser.add_argument("--directory", type=Path, help="where traces are made (default: a temporary directory)")
    arguments = parser.parse_args()
    unknown = [topic for topic in arguments.topics if topic not in TOPICS]
    if unknown or arguments.rounds < 1:
        parser.error(f"unknown topic {unknown[0]}: choose from {', '.join(TOPICS)}" if unknown else "no rounds")
    tables: dict[str, Table] = {}
    with tempfile.TemporaryDirectory(prefix="callscope-benchmarks-", dir=arguments.directory) as name:
        os.environ["CALLSCOPE_CACHE"] = str(Path(name) / "cache")
        for topic in arguments.topics or TOPICS:
            directory = Path(name) / topic
            directory.mkdir()
            tables[topic] = TOPICS[topic](directory, arguments.rounds)
            sys.stdout.write("\n".join([*tables[topic].lines(), "", ""]))
            sys.stdout.flush()
    if arguments.output:
        figures = {topic: table.to_json() for topic, table in tables.items()}
        content = {"machine": machine(), "rounds": arguments.rounds, "topics": figures}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

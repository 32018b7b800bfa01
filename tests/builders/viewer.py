"""Traces for tests of the viewer."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from callscope import format as records
from callscope.reports.database import Database
from callscope.trace.open import open_trace
from callscope.viewer.answers import Answers
from callscope.viewer.server import ViewServer
from tests.builders.calls_table import Call, Thread, TraceBuilder, open_built


def busy(seed: int, calls: int) -> TraceBuilder:
    """A thread of about so many calls, with a few long and many short ones, some levels deep."""
    choose = random.Random(seed)
    left = calls

    def tree(depth: int) -> Call:
        nonlocal left
        left -= 1
        children = []
        while left > 0 and depth < 12 and choose.random() < 0.6:
            children.append(tree(depth + 1))
        return Call(f"f{choose.randrange(9)}", choose.choice([0, 1, 7, 60, 900, 20_000]), tuple(children))

    roots = []
    while left > 0:
        roots.append(tree(0))
    return TraceBuilder([Thread(1, tuple(roots))])


@contextmanager
def opened(builder: TraceBuilder | None, path: Path) -> Iterator[tuple[Database, Answers]]:
    with open_built(builder, path) as database:
        header = np.zeros(1, records.EVENTS_HEADER)
        header["magic"], header["version"] = records.EVENTS_MAGIC, records.TRACE_VERSION
        header["chunk_bytes"] = records.CHUNK_BYTES
        (path / "events").write_bytes(header.tobytes())
        with closing(Answers(database, open_trace(path))) as answers:
            yield database, answers


@contextmanager
def served(answers: Answers) -> Iterator[ViewServer]:
    server = ViewServer(answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""The events file gets its memory ahead of the program, and keeps what is in it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from callscope import format as records
from callscope.recording.populate import FURTHEST, Populator

CHUNK = 1 << 20


def events_file(path: Path, claimed: int, limit: int) -> None:
    header = np.zeros((), records.EVENTS_HEADER)
    header["chunk_bytes"], header["chunk_limit"], header["next_chunk"] = CHUNK, limit, claimed
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.truncate(limit * CHUNK)


def allocated(path: Path) -> int:
    """Whole chunks that have memory, the first one, with the header only, left out."""
    return path.stat().st_blocks * 512 // CHUNK


@pytest.mark.parametrize(
    ("claimed", "limit", "wanted"), [(1, 100, 0), (5, 100, 4), (90, 100, 10), (60, 1000, FURTHEST // CHUNK)]
)
def test_as_much_as_was_claimed(claimed: int, limit: int, wanted: int, tmp_path: Path) -> None:
    path = tmp_path / "events"
    events_file(path, claimed, limit)
    before = path.read_bytes()[: records.EVENTS_HEADER.itemsize]
    with Populator(path):
        deadline = time.monotonic() + 20
        while allocated(path) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    assert allocated(path) == wanted
    assert path.read_bytes()[: len(before)] == before
    assert path.stat().st_size == limit * CHUNK


def test_a_file_that_is_gone_or_no_events_file_is_left_alone(tmp_path: Path) -> None:
    with Populator(tmp_path / "missing"):
        pass
    (tmp_path / "short").write_bytes(b"x")
    with Populator(tmp_path / "short"):
        time.sleep(0.02)
    assert (tmp_path / "short").read_bytes() == b"x"

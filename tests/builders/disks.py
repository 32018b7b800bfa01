"""Small disks, to be filled."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A disk of its own at `path`, of a size as mount(8) takes it; the test is skipped where that is not permitted."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], capture_output=True)
    if made.returncode:
        pytest.skip("not permitted to mount a file system here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)

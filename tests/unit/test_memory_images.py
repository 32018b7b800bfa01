"""Images made of memory: whatever lies there, they are files again, or the reason is said."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callscope.errors import CallscopeError
from callscope.recording.unpacked import is_packed, memory_image, mend_elf, mend_pe


def test_ordinary_programs_are_not_packed(tmp_path: Path) -> None:
    assert not is_packed("/bin/true")
    assert not is_packed(tmp_path)
    assert not is_packed(tmp_path / "missing")


def test_memory_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(CallscopeError, match="the memory of process 4294967295 cannot be read"):
        memory_image(0xFFFFFFFF, 0x1000, 0x1000, tmp_path / "image")
    with pytest.raises(CallscopeError, match="cannot be planned from memory"):
        memory_image(1, 0x1000, 1 << 60, tmp_path / "image")


@given(st.binary(max_size=600), st.sampled_from([b"\x7fELF", b"MZ", b""]), st.integers(0, 1 << 47))
@settings(max_examples=300, deadline=None)
def test_any_memory_is_mended_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes, base: int
) -> None:
    for number, mend in enumerate((mend_elf, mend_pe)):
        path = tmp_path_factory.getbasetemp() / f"memory-{number}"
        path.write_bytes((start + data).ljust(4096, b"\0"))
        try:
            mend(path, base)
        except CallscopeError:
            continue
        assert len(np.fromfile(path, np.uint8)) == 4096

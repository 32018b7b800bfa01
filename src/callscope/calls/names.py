"""Names of functions and call sites: images and their symbols, joined by build-id and relative address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from callscope.binary.functions import FunctionTable, find_functions
from callscope.binary.open import open_image, read_build_id
from callscope.binary.symbols import Symbols, open_symbols
from callscope.errors import CallscopeError


@dataclass
class ImageNames:
    """The names of one image. When the file is gone or another, names are `module+0xoffset`.

    memory: where the trace has its memory, if it unpacked itself: `path` is not what ran.
    """

    path: str
    build_id: bytes
    warnings: list[str]
    memory: str | None = None
    _symbols: Symbols | None = None
    _functions: FunctionTable | None = None
    _opened: bool = False

    @property
    def module(self) -> str:
        """The file's name."""
        return Path(self.path).name or self.path or "[unknown]"

    def names(self, rvas: NDArray[np.int64]) -> list[str]:
        """A name for the function at each relative address."""
        self._open()
        found = self._symbols.names(rvas) if self._symbols is not None and len(rvas) else [None] * len(rvas)
        return [name or f"{self.module}+{rva:#x}" for name, rva in zip(found, rvas.tolist(), strict=True)]

    def location(self, rva: int) -> tuple[str | None, int | None]:
        """File and line of an address, as far as debug information tells."""
        self._open()
        place = self._symbols.location(rva) if self._symbols is not None else None
        return (place[0], place[1]) if place is not None else (None, None)

    def starts(self, rvas: NDArray[np.int64]) -> NDArray[np.int64]:
        """Start of the function that contains each address; the address itself where none is known."""
        self._open()
        if self._functions is None or not len(rvas):
            return rvas
        index = self._functions.index_at(np.maximum(rvas, 0))
        return np.where(index >= 0, self._functions.rva[np.maximum(index, 0)].astype(np.int64), rvas)

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        if not self.path.startswith("/"):
            return
        source = self.memory or self.path
        try:
            if read_build_id(source) != self.build_id:
                self.warnings.append(f"{self.path} is not the file that was traced: its functions have no names")
                return
            self._symbols = open_symbols(source)
            self._functions = find_functions(open_image(source))
        except CallscopeError as error:
            self.warnings.append(f"functions of {self.path} have no names: {error}")

"""Where a call led that was recorded before the dynamic linker had bound it: by name, as the linker would look."""

from __future__ import annotations

from functools import lru_cache

from callscope.binary.image import Image
from callscope.binary.imports import exported_functions, unbound_stubs
from callscope.binary.open import open_image, read_build_id
from callscope.errors import CallscopeError
from callscope.trace.processes import Module


class Linkage:
    """Bindings between the modules of a trace, found in their files."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = modules
        self._stubs = lru_cache(None)(self._read_stubs)
        self._exports = lru_cache(None)(self._read_exports)

    def bind(self, number: int, rva: int) -> tuple[int, int]:
        """(module number, rva) of the function that the linkage code at an address leads to; the address itself where
        there is no such code, or no such function.
        """
        module = self._modules[number]
        name = self._stubs(module.path, module.build_id).get(rva)
        if name is not None:
            for other, candidate in enumerate(self._modules):
                if candidate.process == module.process:
                    place = self._exports(candidate.path, candidate.build_id).get(name)
                    if place is not None:
                        return other, place
        return number, rva

    def _read_stubs(self, path: str, build_id: bytes) -> dict[int, str]:
        image = _open(path, build_id)
        return unbound_stubs(image) if image is not None else {}

    def _read_exports(self, path: str, build_id: bytes) -> dict[str, int]:
        image = _open(path, build_id)
        return exported_functions(image) if image is not None else {}


def _open(path: str, build_id: bytes) -> Image | None:
    """The image of a file; None when it is not what was traced. Names are made elsewhere, which warns then."""
    if not path.startswith("/"):
        return None
    try:
        return open_image(path) if read_build_id(path) == build_id else None
    except CallscopeError:
        return None

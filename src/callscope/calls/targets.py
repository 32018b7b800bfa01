"""Targets of recorded call sites that no traced function stands for: one function id each, the same in all threads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from callscope import format as records
from callscope.calls.kernel import PassResult
from callscope.calls.linkage import Linkage
from callscope.trace.open import Trace

_FIRST = records.LAST_FUNCTION + 1


@dataclass(frozen=True)
class Target:
    """What was called: at `rva` of the trace's module number `module`; -1: in none, `rva` is the address's low half."""

    function_id: int
    module: int
    rva: int


class Targets:
    """Gives ids to the targets of one trace; those new to it are in `found`."""

    def __init__(self, trace: Trace, results: Iterable[PassResult]) -> None:
        """`results`: of all threads, for what was entered there."""
        self.found: list[Target] = []
        self._entered = {function for result in results for function in np.unique(result.nodes["function"]).tolist()}
        self._modules = trace.modules
        self._images = {image.id_base: image for image in trace.images if image.is_known}
        self._linkage = Linkage(trace.modules)
        self._ids: dict[tuple[str, bytes, int], int] = {}

    def name(self, result: PassResult) -> NDArray[np.int32]:
        """Give the result's nodes and histograms the ids of this trace; those of its sites that are targets, else -1,
        int32, shape (sites,).
        """
        names = np.full(len(result.sites), -1, np.int32)
        places = result.nodes["function"].astype(np.int64) - _FIRST
        for place in np.unique(places[places >= 0]).tolist():
            names[place] = self._id(result.sites[place])
        for table in (result.nodes, result.buckets):
            known = table["function"] >= _FIRST
            table["function"][known] = names[table["function"][known].astype(np.int64) - _FIRST]
        return names

    def _id(self, site: np.void) -> int:
        module, rva = int(site["module"]), int(site["rva"])
        path, build_id = "", b""
        if module >= 0:
            module, rva = self._linkage.bind(module, rva)
            loaded = self._modules[module]
            path, build_id = loaded.path, loaded.build_id
            image = self._images.get(loaded.id_base) if loaded.is_traced else None
            if image is not None:
                index = int(np.searchsorted(image.functions["rva"], rva))
                is_start = index < len(image.functions) and image.functions["rva"][index] == rva
                if is_start and image.id_base + index in self._entered:
                    return image.id_base + index
        else:
            rva = int(site["return_address"])
        key = (path, build_id, rva)
        if key not in self._ids:
            self._ids[key] = _FIRST + len(self._ids)
            self.found.append(Target(self._ids[key], module, rva))
        return self._ids[key]

"""What a plan records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Calls = Literal["", "leaving", "all"]


@dataclass(frozen=True, slots=True)
class Scope:
    """`calls`: which call sites are recorded besides functions: those that lead out of the image or anywhere (imports,
    pointers, virtual functions), or all. `once`: nothing but call sites, and each only the first time.
    """

    calls: Calls = ""
    once: bool = False

    @property
    def suffix(self) -> str:
        """Tells the plans of one image apart by their names."""
        return f"-{self.calls}{'-once' * self.once}" if self.calls else ""


FUNCTIONS = Scope()
"""functions alone"""

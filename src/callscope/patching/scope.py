"""What a plan records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from callscope.errors import PlanError

Calls = Literal["", "leaving", "all"]


@dataclass(frozen=True)
class Arguments:
    """Whose arguments and results are recorded.

    functions: globs on names; none: all functions. raw: the registers of functions whose prototype is not known.
    prototypes: a file of C declarations, in front of debug information.
    """

    functions: tuple[str, ...] = ()
    raw: bool = False
    prototypes: Path | None = None

    @property
    def digest(self) -> str:
        """Tells these apart in names of files. Raises PlanError when the prototypes cannot be read."""
        text = b""
        if self.prototypes is not None:
            try:
                text = self.prototypes.read_bytes()
            except OSError as error:
                raise PlanError(f"cannot read the prototypes in {self.prototypes}: {error.strerror}") from None
        return hashlib.sha256(repr((self.functions, self.raw)).encode() + text).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Scope:
    """`calls`: which call sites are recorded besides functions: those that lead out of the image or anywhere (imports,
    pointers, virtual functions), or all. `once`: nothing but call sites, and each only the first time. `arguments`: of
    which functions arguments and results are recorded; None: of none.
    `stacks_at`: globs of the functions at whose entries the call stack is captured.
    """

    calls: Calls = ""
    once: bool = False
    arguments: Arguments | None = None
    stacks_at: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Tells the plans of one image apart by their names."""
        sites = f"-{self.calls}{'-once' * self.once}" if self.calls else ""
        stacks = f"-stacks-{hashlib.sha256(repr(self.stacks_at).encode()).hexdigest()[:16]}" if self.stacks_at else ""
        return sites + stacks + (f"-args-{self.arguments.digest}" if self.arguments is not None else "")


FUNCTIONS = Scope()
"""functions alone"""

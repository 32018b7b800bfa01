"""Callscope records what calls what, and when, in programs you cannot or will not rebuild."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callscope.recording.api import record as record

__version__ = "0.1.0"

_LAZY = {"record": "callscope.recording.api"}
"""Names of this package and the modules that define them, imported when first used: `import callscope` stays quick."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)

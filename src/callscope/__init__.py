"""Callscope records what calls what, and when, in programs you cannot or will not rebuild."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callscope.api import TraceTables as open  # noqa: N813
    from callscope.ipython import load_ipython_extension as load_ipython_extension
    from callscope.recording.api import record as record
    from callscope.recording.capture import capture as capture
    from callscope.recording.inside import trace as trace

__version__ = "0.1.0"
__all__ = ["__version__", "capture", "load_ipython_extension", "open", "record", "trace"]

_LAZY = {
    "load_ipython_extension": ("callscope.ipython", "load_ipython_extension"),
    "capture": ("callscope.recording.capture", "capture"),
    "open": ("callscope.api", "TraceTables"),
    "record": ("callscope.recording.api", "record"),
    "trace": ("callscope.recording.inside", "trace"),
}
"""Names of this package: module and name there, imported when first used, so that `import callscope` stays quick."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)

"""Hatchling's build hook: compile the native parts before the wheel is packed."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface[Any]):
    """Puts the compiled libraries into callscope/lib of the wheel, and tags it for this platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into src/callscope/lib."""
        root = Path(self.root)
        runpy.run_path(str(root / "native/build.py"))["build"](root / "src/callscope/lib")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-manylinux_2_17_x86_64"

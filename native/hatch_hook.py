"""Build the native parts when a wheel is made, and name the wheel after what they run on."""

from __future__ import annotations

import platform
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling is there only when building
    """hatchling's way in to ``build.py``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        sys.path.insert(0, self.root)
        from native import build

        build.build()
        # No Python version is in the tag: nothing here is linked with Python.
        floor = build.GLIBC_FLOOR.replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_{floor}_{platform.machine()}"

# SPDX-License-Identifier: Apache-2.0
"""A process that has a context and nothing else: says what it is charged, and stays until its stdin ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def main() -> int:
    sys.path[:0] = [str(ROOT / "shim"), str(ROOT / "tests" / "shim" / "programs")]
    import client
    import vgpu_shim

    client.up()
    print(json.dumps({"charged": vgpu_shim.slices()[0].memory_used, "free": client.info()[0]}), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())

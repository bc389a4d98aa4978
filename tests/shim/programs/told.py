# SPDX-License-Identifier: Apache-2.0
"""A program that does what it is told: pieces of Python, one a line as JSON; answers what they `answer()`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

said: list[Any] = []
space: dict[str, Any] = {"answer": said.append, "time": time}

for line in sys.stdin:
    said.clear()
    exec(json.loads(line), space)
    print(json.dumps(said[-1] if said else None), flush=True)

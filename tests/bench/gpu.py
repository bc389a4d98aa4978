"""``make bench-gpu``: what calls cost with us and without on this machine's own GPU, and how exact the charges are.

Both in one go of a few minutes, as a table and as JSON in ``results/``, named after the card and its driver. Without a
GPU it says so in one line and ends with 2; 1 means that a gate is missed or that NVML saw more than the quota.
``--rehearse`` does the same on a simulated card, to see that it can be done.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench import accuracy, calls
from tests.bench.__main__ import HERE, bench, driver_of, table

CROWDS = 3
"""Starting 64 processes takes a real driver many seconds."""


def no_gpu() -> str:
    """Why there is nothing to measure here; nothing if there is."""
    try:
        code = ctypes.CDLL("libcuda.so.1").cuInit(0)
    except OSError as error:
        return f"no NVIDIA driver here: {error}"
    return f"no GPU here: cuInit returns {code}" if code else ""


def matrix_of(simulated: bool) -> tuple[accuracy.Matrix, dict[str, Any]]:
    """The accuracy matrix, in a tenant of its own; and what device and driver it is from."""
    with tempfile.TemporaryDirectory(prefix="vgpu-bench-") as scratch:
        environment = {**os.environ, "VGPU_STATE_DIR": scratch}
        vgpu, sim, outside = [sys.executable, "-m", "vgpu_runtime"], [], dict(environment)
        if simulated:
            sim = ["--sim", "h200"]
            driver = subprocess.run([*vgpu, "sim", "h200"], env=environment, capture_output=True, text=True, check=True)
            outside["LD_LIBRARY_PATH"] = driver.stdout.strip()
        prefix = [*vgpu, "run", *sim, "--memory", str(accuracy.QUOTA), "--"]
        return accuracy.measure(prefix, environment, outside), driver_of(simulated, outside)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--batches", type=int, default=15, help="batches for each row (default: %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on a simulated card; proves nothing of a real one")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder to write to")
    options = parser.parse_args()
    if options.batches < 2:
        parser.error(f"--batches {options.batches}: at least 2 are needed for a spread, for example --batches 15")
    if not options.rehearse and (reason := no_gpu()):
        print(f"bench-gpu: {reason}", file=sys.stderr)
        return 2
    matrix, about = matrix_of(options.rehearse)
    print(accuracy.table(matrix), flush=True)
    costs = bench(options.batches, options.rehearse, calls.GPU_OPERATIONS, 1 if options.rehearse else CROWDS)
    text = f"{table(costs)}\n\nMemory, {about['device']}:\n\n{accuracy.table(matrix)}\n"
    name = "local-gpu" if options.rehearse else re.sub(r"\W+", "-", f"{about['device']} {about['driver']}").lower()
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / f"{name}.json").write_text(
        json.dumps({**costs, "memory": accuracy.as_json(matrix)}, indent=2) + "\n"
    )
    (options.results / f"{name}.txt").write_text(text)
    print(f"\n{table(costs)}\n\nwritten to {options.results / name}.json and .txt")
    return int(not matrix.is_within or any(row["is_over"] for row in costs["rows"]))


if __name__ == "__main__":
    sys.exit(main())

"""``make bench``: what driver calls cost with us, as a table and as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench import calls

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NULL_MACHINE = HERE / "null-machine.yaml"

# Set-ups as options of `vgpu run`. A quota that is never reached, a limit that is never felt: what is
# timed is the path of a call that is allowed.
SETUPS: Mapping[str, tuple[str, ...]] = {
    "memory quota": ("--memory", "4GiB"),
    "memory and compute": ("--memory", "4GiB", "--cores", "90"),
}


def compile_program(directory: Path) -> Path:
    """The timing program, made with the compiler of the native build."""
    from native import build

    program = directory / "driver_calls"
    build.run([*build.compiler(), "-O2", f"-I{ROOT / 'native'}", f"-I{ROOT / 'native' / 'sim'}",
               str(HERE / "driver_calls.c"), "-o", str(program), "-ldl"])  # fmt: skip
    return program


def driver_of(simulated: bool, environment: Mapping[str, str]) -> dict[str, Any]:
    """Device and driver that the figures are from."""
    query = subprocess.run(
        [sys.executable, "-c", "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetName("
         "n.nvmlDeviceGetHandleByIndex(0))); print(n.nvmlSystemGetDriverVersion())"],
        env=dict(environment), capture_output=True, text=True, check=True,
    )  # fmt: skip
    name, version = query.stdout.split("\n")[:2]
    return {"device": name, "driver": version, "simulated": simulated}


def bench(batches: int, simulated: bool) -> dict[str, Any]:
    """Measure, and say on what."""
    with tempfile.TemporaryDirectory(prefix="vgpu-bench-") as scratch:
        directory = Path(scratch)
        environment = {**os.environ, "VGPU_STATE_DIR": str(directory / "state")}
        vgpu = [sys.executable, "-m", "vgpu_runtime"]
        sim: list[str] = []
        bare = dict(environment)
        if simulated:
            sim = ["--sim", str(NULL_MACHINE)]
            driver = subprocess.run([*vgpu, "sim", str(NULL_MACHINE)], env=environment, capture_output=True,
                                    text=True, check=True).stdout.strip()  # fmt: skip
            bare["LD_LIBRARY_PATH"] = driver
        setups: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {calls.BARE: ((), bare)}
        for number, (name, options) in enumerate(SETUPS.items()):
            setups[name] = ([*vgpu, "run", *sim, "--name", f"bench-{number}", *options, "--"], environment)
        with calls.workers(compile_program(directory), setups) as running:
            rows = calls.measure(running, batches)
        about = driver_of(simulated, bare)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": platform.machine(),
        "processor": processor(),
        **about,
        "rows": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows],
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def table(result: Mapping[str, Any]) -> str:
    """The result as people read it."""
    lines = [
        f"{result['device']}, driver {result['driver']}{', simulated' if result['simulated'] else ''}; "
        f"{result['processor']}; {result['date']}",
        "",
        f"{'call':14}{'set-up':22}{'bare ns':>9}{'ours ns':>9}{'added ns':>10}{'p10 … p90':>18}{'ratio':>8}",
    ]
    for row in result["rows"]:
        spread = f"{row['added_p10_ns']:.1f} … {row['added_p90_ns']:.1f}"
        lines.append(
            f"{row['operation']:14}{row['setup']:22}{row['bare_ns']:9.1f}{row['ns']:9.1f}{row['added_ns']:10.1f}"
            f"{spread:>18}{row['ratio']:8.2f}"
        )
    if result["simulated"]:
        lines += [
            "",
            "The added cost is ours; the ratio is against a simulated driver, which is faster than any real one.",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--batches", type=int, default=31, help="batches for each row (default: %(default)s)")
    parser.add_argument("--driver", choices=("sim", "gpu"), default="sim", help="what is under us")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "local.json", help="JSON file to write")
    options = parser.parse_args()
    if options.batches < 2:
        parser.error(f"--batches {options.batches}: at least 2 are needed for a spread, for example --batches 31")
    result = bench(options.batches, options.driver == "sim")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    print(f"\nwritten to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

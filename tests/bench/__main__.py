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

from tests.bench import calls, starts

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NULL_MACHINE = HERE / "null-machine.yaml"
LIBRARY = ROOT / "vgpu_runtime" / "_native" / "libvgpu.so"

# Set-ups as options of `vgpu run`. A quota that is never reached, a limit that is never felt: what is
# timed is the path of a call that is allowed. Each has room for a crowd of contexts.
SETUPS: Mapping[str, tuple[str, ...]] = {
    "memory quota": ("--memory", "40%"),
    "memory and compute": ("--memory", "40%", "--cores", "90"),
}


def compile_program(directory: Path, name: str) -> Path:
    """A timing program, made with the compiler of the native build."""
    from native import build

    program = directory / name
    build.run([*build.compiler(), "-O2", f"-I{ROOT / 'native'}", f"-I{ROOT / 'native' / 'sim'}",
               str(HERE / f"{name}.c"), "-o", str(program), "-ldl", "-lpthread"])  # fmt: skip
    return program


def compile_driver(directory: Path) -> Path:
    """A folder with the driver of `parallel_driver.c`."""
    from native import build

    directory.mkdir()
    build.run([*build.compiler(), "-O2", "-fPIC", "-shared", f"-I{ROOT / 'native'}", str(HERE / "parallel_driver.c"),
               "-o", str(directory / "libcuda.so.1"), "-Wl,-soname,libcuda.so.1", "-Wl,-Bsymbolic"])  # fmt: skip
    return directory


def driver_of(simulated: bool, environment: Mapping[str, str]) -> dict[str, Any]:
    """Device and driver that the figures are from."""
    query = subprocess.run(
        [sys.executable, "-c", "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetName("
         "n.nvmlDeviceGetHandleByIndex(0))); print(n.nvmlSystemGetDriverVersion())"],
        env=dict(environment), capture_output=True, text=True, check=True,
    )  # fmt: skip
    name, version = query.stdout.split("\n")[:2]
    return {"device": name, "driver": version, "simulated": simulated}


def uuid_of(environment: Mapping[str, str]) -> str:
    """The first device's UUID, as 32 digits."""
    query = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByIndex(0)))"
    done = subprocess.run([sys.executable, "-c", query], env=dict(environment), capture_output=True, text=True,
                          check=True)  # fmt: skip
    return done.stdout.strip().partition("-")[2].replace("-", "")


def bench(
    batches: int, simulated: bool, operations: Sequence[calls.Operation] = calls.OPERATIONS, crowds: int | None = None
) -> dict[str, Any]:
    """Measure, and say on what; so many rounds of each, or so many of a crowd of processes."""
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
        program = compile_program(directory, "driver_calls")
        crowded = [operation for operation in operations if simulated and operation.threads > 1]
        with calls.workers(program, setups) as running:
            rows = calls.measure(running, batches, [one for one in operations if one not in crowded])
        if crowded:
            # Threads wait for the simulated driver's one lock, which would be measured instead of us.
            lockless = [f"LD_LIBRARY_PATH={compile_driver(directory / 'parallel')}",
                        f"PARALLEL_UUID={uuid_of(bare)}"]  # fmt: skip
            apart = {name: ([*prefix, "env", *lockless], chosen) for name, (prefix, chosen) in setups.items()}
            with calls.workers(program, apart) as running:
                rows += calls.measure(running, batches, crowded)
        first = next(iter(SETUPS))
        rows += starts.measure(compile_program(directory, "starts"), LIBRARY, first, setups[first], batches,
                               crowds or batches)  # fmt: skip
        about = driver_of(simulated, bare)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": platform.machine(),
        "processor": processor(),
        **about,
        "rows": [{**dataclasses.asdict(row), "ratio": row.ratio, "is_over": row.is_over} for row in rows],
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
        f"{'call':36}{'set-up':20}{'bare ns':>10}{'ours ns':>10}{'added ns':>10}{'ratio':>8}{'95 %':>24}{'gate':>11}",
    ]
    for row in result["rows"]:
        gate = f"{row['gate_ns']:,.0f}" if row["gate_ns"] else ""
        bounds = f"{row['low_ns']:,.1f} … {row['high_ns']:,.1f}"
        verdict = "" if not gate else "  over" if row["is_over"] else "  ok"
        lines.append(
            f"{row['operation']:36}{row['setup']:20}{row['bare_ns']:10,.1f}{row['ns']:10,.1f}{row['added_ns']:10,.1f}"
            f"{row['ratio']:8.2f}{bounds:>24}{gate:>11}{verdict}"
        )
    lines += ["", "95 %: of what is added, which the gate is for; a refusal's are of the whole, as no driver is asked."]
    if result["simulated"]:
        lines.append(
            "The ratio is against a simulated driver, which is faster than any real one; with several threads, against"
        )
        lines.append(
            "one that takes no lock (parallel_driver.c), as the simulated one's would be measured instead of us."
        )
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
    return any(row["is_over"] for row in result["rows"])


if __name__ == "__main__":
    sys.exit(main())

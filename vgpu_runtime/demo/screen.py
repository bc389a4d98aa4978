# SPDX-License-Identifier: Apache-2.0
"""
What the demonstration found, judged and on one screen of 24 lines and 100 columns.

Pure functions of what the programs reported. A promise that is not kept is marked where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vgpu_runtime.units import format_memory, parse_cores, parse_memory

WIDTH = 100
LABEL = 22
COLUMN = 26
# Points of a percent. Above its quota a tenant gets no more than the burst and the measuring itself allow; below
# it, a busy machine may keep the program from launching in time.
ABOVE, BELOW = 2.0, 4.0


@dataclass(frozen=True, slots=True)
class Report:
    """What one program saw and got; `memory` and `cores` are its quota as it was asked for, or None."""

    title: str
    memory: str | None
    cores: str | None
    cuda_total: int
    nvml_total: int
    allocated: int
    refusal: str | None
    kernels: int
    kernel_ns: int
    elapsed_ns: int
    client: str  # what an NVML client printed about the device

    @property
    def share(self) -> float:
        """Percent of the time in which the device worked for it."""
        return 100 * self.kernels * self.kernel_ns / self.elapsed_ns


def broken(report: Report, device_memory: int) -> list[str]:
    """The rows of the screen in which a promise is not kept."""
    rows = []
    if report.memory is None or report.cores is None:
        # The same program, not capped: it shows that the limits were ours.
        if report.cuda_total < device_memory * 0.9 or report.nvml_total != device_memory:
            rows.append("it sees")
        if report.refusal is not None:
            rows.append("and then")
        return rows
    memory, cores = parse_memory(report.memory, device_memory), parse_cores(report.cores)
    if (report.cuda_total, report.nvml_total) != (memory, memory):
        rows.append("it sees")
    if not memory - 2**30 <= report.allocated <= memory:
        rows.append("it could allocate")
    if report.refusal != "CUDA_ERROR_OUT_OF_MEMORY":
        rows.append("and then")
    if not cores - BELOW <= report.share <= cores + ABOVE:
        rows.append("share of compute")
    if f"{memory // 2**20} " not in report.client:
        rows.append("gpustat shows")
    return rows


def draw(title: str, reports: Sequence[Report], device_memory: int, seconds: float) -> tuple[str, bool]:
    """The screen, and whether all promises are kept."""
    faults = [broken(report, device_memory) for report in reports]

    def row(label: str, cells: Sequence[str]) -> str:
        marked = [cell + (" <- NO" if label in fault else "") for cell, fault in zip(cells, faults, strict=True)]
        return (f"{label:{LABEL}}" + "".join(f"{cell:{COLUMN}}" for cell in marked)).rstrip()[:WIDTH]

    lines = [
        title[:WIDTH],
        "",
        row("", [report.title for report in reports]),
        row("quota", [f"{r.memory}, {r.cores}% of compute" if r.memory else "none" for r in reports]),
        row("it sees", [_both(report) for report in reports]),
        row("it could allocate", [format_memory(report.allocated) for report in reports]),
        row("and then", [report.refusal or "(asked for no more)" for report in reports]),
        row("then it worked on", [f"{r.kernels} kernels of {r.kernel_ns / 1e6:g} ms" for r in reports]),
        row("share of compute", [f"{report.share:.1f}%" for report in reports]),
        "",
        *(f"gpustat, {report.title}: {report.client}"[:WIDTH] for report in reports),
        "",
        *_verdict(reports, faults, seconds),
    ]
    return "\n".join(lines), not any(faults)


def _both(report: Report) -> str:
    cuda, nvml = format_memory(report.cuda_total), format_memory(report.nvml_total)
    return f"{cuda} (CUDA and NVML)" if cuda == nvml else f"{cuda}; NVML {nvml}"


def _verdict(reports: Sequence[Report], faults: Sequence[list[str]], seconds: float) -> list[str]:
    if not any(faults):
        return [f"All as promised; it took {seconds:.0f} s. Next: `vgpu run --help`, and the README."]
    return [
        f"NOT as promised, {report.title}: {', '.join(fault)}"
        for report, fault in zip(reports, faults, strict=True)
        if fault
    ]

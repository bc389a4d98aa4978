# SPDX-License-Identifier: Apache-2.0
"""
A CUDA program as any other: NVIDIA's Python bindings, a kernel, memory, launches.

It knows nothing of vgpu-runtime and imports nothing of it. It prints what it sees as one line of JSON, waits
for a line on stdin, works for a while, and prints a second line with what it got:

    tenant.py SECONDS KERNEL_NS MOST_MEMORY

Memory is allocated until it is refused, or until MOST_MEMORY bytes are held.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from cuda.bindings import driver as cuda

SPIN = Path(__file__).with_name("spin.ptx").read_bytes() + b"\0"
PIECE = 512 * 2**20
SMALLEST = 2**20
AT_ONCE = 8  # kernels between two looks at the clock


def check(answer: tuple[Any, ...]) -> Any:
    """The results of a driver call that must succeed."""
    status, *results = answer
    if status != cuda.CUresult.CUDA_SUCCESS:
        raise SystemExit(f"the driver says {status.name}")
    return results[0] if len(results) == 1 else results


def seen() -> dict[str, Any]:
    """The device as CUDA and NVML show it to this process."""
    import pynvml

    free, total = check(cuda.cuMemGetInfo())
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml_total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
    name = pynvml.nvmlDeviceGetName(handle)
    pynvml.nvmlShutdown()
    return {"pid": os.getpid(), "device": name, "cuda_total": total, "cuda_free": free, "nvml_total": nvml_total}


def allocate(most: int) -> tuple[list[Any], int, str | None]:
    """Allocate until it is refused; what was got, its bytes, and the name of the refusal."""
    held, size, piece, refusal = [], 0, PIECE, None
    while size < most and piece >= SMALLEST:
        status, pointer = cuda.cuMemAlloc(min(piece, most - size))
        if status == cuda.CUresult.CUDA_SUCCESS:
            held.append(pointer)
            size += min(piece, most - size)
        else:
            refusal = status.name
            piece //= 2
    return held, size, refusal


def work(function: Any, seconds: float, kernel_ns: int) -> tuple[int, int]:
    """Launch kernels of that length for a while; how many were done, and in how many nanoseconds."""
    arguments = ((kernel_ns,), (ctypes.c_uint64,))
    marks = [check(cuda.cuEventCreate(2)) for _ in range(2)]  # 2: without time stamps
    begin = time.monotonic_ns()
    rounds = 0
    while time.monotonic_ns() - begin < seconds * 1e9:
        for _ in range(AT_ONCE):
            check(cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, arguments, 0))
        check(cuda.cuEventRecord(marks[rounds % 2], 0))
        rounds += 1
        if rounds > 1:  # one round stays ahead of the device, so that it is never idle for our sake
            check(cuda.cuEventSynchronize(marks[rounds % 2]))
    check(cuda.cuCtxSynchronize())
    return rounds * AT_ONCE, time.monotonic_ns() - begin


def main() -> None:
    seconds, kernel_ns, most = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    check(cuda.cuInit(0))
    device = check(cuda.cuDeviceGet(0))
    check(cuda.cuCtxSetCurrent(check(cuda.cuDevicePrimaryCtxRetain(device))))
    print(json.dumps(seen()), flush=True)
    sys.stdin.readline()
    held, allocated, refusal = allocate(most)
    for pointer in held[1:]:
        check(cuda.cuMemFree(pointer))
    function = check(cuda.cuModuleGetFunction(check(cuda.cuModuleLoadData(SPIN)), b"vgpu_spin"))
    kernels, elapsed = work(function, seconds, kernel_ns)
    report = {"allocated": allocated, "refusal": refusal, "kernels": kernels, "elapsed_ns": elapsed}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()

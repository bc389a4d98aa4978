# SPDX-License-Identifier: Apache-2.0
"""
A program that uses a GPU, for others to look at: holds memory, keeps the device busy.

Standard library only, so that it runs in any container. It prints one line of JSON when it has what it
asked for (``{"pid": ..., "free": ..., "total": ...}``, or ``{"error": NAME}`` and ends with 1), and goes on
until its stdin is closed.

    python gpu_user.py [--device N] [--memory BYTES] [--busy PERCENT]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import select
import sys
import time

KERNEL_NS = 1_000_000
"""Length of one kernel. The simulated GPU's `vgpu_spin` lasts as long as its argument says."""


class DriverError(Exception):
    """The driver's own name of an error."""


class Driver:
    """libcuda.so.1 as the dynamic linker finds it; every call checked."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: object) -> None:
        """Call a function; raise DriverError unless it succeeds."""
        code = getattr(self.library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.library.cuGetErrorName(code, ctypes.byref(text))
            raise DriverError((text.value or str(code).encode()).decode())


def begin(driver: Driver, device: int, memory: int) -> dict[str, int]:
    """Make a context, allocate, and say what the device has then."""
    context, pointer, number = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_int()
    driver.call("cuInit", 0)
    driver.call("cuDeviceGet", ctypes.byref(number), device)
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
    driver.call("cuCtxSetCurrent", context)
    if memory:
        driver.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(memory))
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return {"pid": os.getpid(), "free": free.value, "total": total.value}


def keep_busy(driver: Driver, percent: int) -> None:
    """Launch kernels for so much of each tenth of a second, until stdin is closed."""
    module, function, length = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64(KERNEL_NS)
    driver.call("cuModuleLoadData", ctypes.byref(module), b"\0" * 64)
    driver.call("cuModuleGetFunction", ctypes.byref(function), module, b"vgpu_spin")
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(length))
    while not select.select([sys.stdin], [], [], 0)[0]:
        begun = time.monotonic()
        for _ in range(percent):
            driver.call("cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, None, arguments, None)
        driver.call("cuCtxSynchronize")
        time.sleep(max(0.0, begun + 0.1 - time.monotonic()))


def main() -> int:
    """Run; the exit status of the program."""
    parser = argparse.ArgumentParser(description="Use a GPU until stdin is closed.")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0, help="bytes to allocate")
    parser.add_argument("--busy", type=int, default=0, help="percent of the time that kernels run")
    options = parser.parse_args()
    driver = Driver()
    try:
        print(json.dumps(begin(driver, options.device, options.memory)), flush=True)
        if options.busy:
            keep_busy(driver, options.busy)
        else:
            sys.stdin.read()
    except DriverError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

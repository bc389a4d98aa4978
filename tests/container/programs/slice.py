# SPDX-License-Identifier: Apache-2.0
"""What a program finds: its slice as NVML and CUDA tell it, and what happens around the limit.

Prints one JSON object. NVML is asked through NVIDIA's own client, CUDA through the plain C interface. The
arguments are sizes in bytes, with `host:` before them of page-locked host memory: each is allocated and freed
again, and the driver's answer is told.
"""

import ctypes
import json
import os
import sys

import pynvml


def nvml() -> dict[str, object]:
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {
        "nvml": {pynvml.nvmlDeviceGetUUID(each): pynvml.nvmlDeviceGetMemoryInfo(each).total for each in handles},
    }


def cuda(sizes: list[str]) -> dict[str, object]:
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total, pointer = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
    for code in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        driver.cuCtxSetCurrent(context),
        driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)),
    ):
        if code:
            return {"cuda": None, "code": code}
    codes = {}
    for size in sizes:
        if size.startswith("host:"):
            held = ctypes.c_void_p()
            codes[size] = driver.cuMemAllocHost_v2(ctypes.byref(held), ctypes.c_size_t(int(size[5:])))
            if not codes[size]:
                driver.cuMemFreeHost(held)
            continue
        codes[size] = driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(int(size)))
        if not codes[size]:
            driver.cuMemFree_v2(pointer)
    return {"cuda": total.value, "allocations": codes}


print(json.dumps({**nvml(), **cuda(sys.argv[1:]), "environment": sorted(os.environ)}))

# SPDX-License-Identifier: Apache-2.0
"""Unmodified clients from PyPI in a tenant: they find the driver in ways of their own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
from tools.tenants import Tenant

Make = Callable[..., Tenant]


def need(module: str, package: str) -> None:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if not found:
        pytest.skip(f"{package} is not installed: pip install {package}")


BINDINGS = """
from cuda.bindings import driver as cuda
import client
def ok(result):
    assert result[0] == cuda.CUresult.CUDA_SUCCESS, result[0]
    return result[1] if len(result) > 1 else None
ok(cuda.cuInit(0))
ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(ok(cuda.cuDeviceGet(0))))))
free, total = (lambda result: (result[1], result[2]))(cuda.cuMemGetInfo())
function = ok(cuda.cuModuleGetFunction(ok(cuda.cuModuleLoadData(client.SPIN)), b"vgpu_spin"))
arguments = ((2_000_000,), (ctypes.c_uint64,))
for _ in range(20):
    ok(cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, arguments, 0))
ok(cuda.cuCtxSynchronize())
begin = time.monotonic()
for _ in range(50):
    ok(cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, 0, arguments, 0))
ok(cuda.cuCtxSynchronize())
share = 0.1 / (time.monotonic() - begin)
refused = str(cuda.cuMemAlloc(total + 1)[0].name)
kept = cuda.cuMemAlloc(free // 2)
answer([total, refused, str(kept[0].name), str(cuda.cuMemFree(kept[1])[0].name), share])
"""


def test_cuda_bindings_see_and_get_the_slice(make_tenant: Make, bare: Tenant, quota: int) -> None:
    need("cuda.bindings", "cuda-bindings")
    tenant = make_tenant(quota, 25)
    total, refused, kept, freed, share = tenant.ask(BINDINGS)
    assert (total, refused, kept, freed) == (tenant.memory, "CUDA_ERROR_OUT_OF_MEMORY", "CUDA_SUCCESS", "CUDA_SUCCESS")
    assert share == pytest.approx(0.25, abs=0.05)
    total, *_, share = bare.ask(BINDINGS)
    assert total > tenant.memory
    assert share > 0.8


def test_nvidia_ml_py_sees_the_slice(make_tenant: Make, bare: Tenant, quota: int) -> None:
    script = """
    import pynvml
    import client
    client.up()
    client.alloc(1 << 20)
    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    first, second = pynvml.nvmlDeviceGetMemoryInfo(device), pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2)
    mine = [[one.pid == os.getpid(), one.usedGpuMemory] for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]
    pynvml.nvmlShutdown()
    answer([first.total, second.total, first.used, mine])
    """
    need("pynvml", "nvidia-ml-py")
    tenant = make_tenant(quota)
    used = 2**20 + tenant.driver.context_memory
    assert tenant.ask(script) == [tenant.memory, tenant.memory, used, [[True, used]]]
    assert bare.ask(script)[0] > tenant.memory


def test_numba_sees_and_gets_the_slice(make_tenant: Make, quota: int) -> None:
    script = f"""
    from numba import cuda
    import numpy
    context = cuda.current_context()
    total = context.get_memory_info().total
    held = cuda.device_array({quota} // 2, dtype=numpy.uint8)
    try:
        cuda.device_array({quota}, dtype=numpy.uint8)
        said = "no limit"
    except cuda.cudadrv.driver.CudaAPIError as error:
        said = str(error)
    answer([total, "OUT_OF_MEMORY" in said])
    """
    need("numba_cuda", "numba-cuda")
    need("numpy", "numpy")
    tenant = make_tenant(quota)
    assert tenant.ask(script) == [tenant.memory, True]

# SPDX-License-Identifier: Apache-2.0
"""Programs that use no GPU, or that have no grant, do not notice the shim."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from tools.tenants import Driver, Tenant

PROGRAMS = {
    "true": ["/bin/true"],
    "shell": ["/bin/bash", "-c", "echo $((6 * 7)); (exit 3); echo $?; ls /proc/self/fd | wc -l; cat < /dev/null"],
    "python": [sys.executable, "-c", "import ctypes, json, threading, sqlite3; print(json.dumps([1, 2]))"],
    "threads": [
        sys.executable,
        "-c",
        "import threading\nt = [threading.Thread(target=lambda: None) for _ in range(50)]\n"
        "[x.start() for x in t]; [x.join() for x in t]; print('done')",
    ],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_without_a_gpu_behave_as_without_us(driver: Driver, name: str) -> None:
    ours, theirs = (tenant.attempt(*PROGRAMS[name]) for tenant in (Tenant(driver), Tenant(driver, preload="")))
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_a_program_without_a_gpu_opens_nothing_of_its_tenant(make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant(2**30)
    assert str(tenant.directory) not in tenant.run("/bin/cat", "/proc/self/maps")


def test_without_a_grant_the_device_is_all_there(driver: Driver, bare: Tenant) -> None:
    script = """
    from client import *
    up()
    available, total = info()
    device = ctypes.c_size_t()
    check(cuda.cuDeviceTotalMem_v2(ctypes.byref(device), 0))
    code, made = alloc(available // 2)
    answer([total, device.value, code, free(made), cuda.cuMemFree_v2(ctypes.c_uint64(12345))])
    """
    assert Tenant(driver).ask(script) == bare.ask(script)


@pytest.mark.parametrize("name", ["cuInit", "cuMemAlloc_v2"])
def test_nothing_is_written_to_stdout_or_stderr(make_tenant: Callable[..., Tenant], name: str) -> None:
    script = """
    from client import *
    up()
    code, made = alloc(1 << 50)
    """
    tenant = make_tenant(2**30, 50)
    done = tenant.attempt(*tenant.script(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

# SPDX-License-Identifier: Apache-2.0
"""A tenant whose files cannot be used: closed, said once, and the program lives on."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.tenants import Tenant

Make = Callable[..., Tenant]

NOT_READY, NO_PERMISSION, OUT_OF_MEMORY = 802, 4, 2

EVERYTHING = """
from client import *
nvml = ctypes.CDLL("libnvidia-ml.so.1")
made, count = pointer(), ctypes.c_uint(0)
codes = [cuda.cuInit(0), cuda.cuInit(0), nvml.nvmlInit_v2(), nvml.nvmlInit(), nvml.nvmlInitWithFlags(0)]
codes += [cuda.cuMemAlloc_v2(ctypes.byref(made), size(1024)), cuda.cuMemAllocManaged(ctypes.byref(made), size(1024), 1),
          cuda.cuMemAllocAsync(ctypes.byref(made), size(1024), None), cuda.cuMemGetInfo_v2(None, None),
          cuda.cuLaunchKernel(None, 1, 1, 1, 1, 1, 1, 0, None, None, None),
          nvml.nvmlDeviceGetMemoryInfo(None, None), nvml.nvmlDeviceGetComputeRunningProcesses_v3(None, None, None)]
answer(codes)
"""
CLOSED = [NOT_READY] * 2 + [NO_PERMISSION] * 3 + [OUT_OF_MEMORY] * 3 + [NOT_READY] * 2 + [NO_PERMISSION] * 2


def replace_word(file: Path, offset: int, format: str, value: int) -> None:
    """Overwrite one field."""
    content = bytearray(file.read_bytes())
    struct.pack_into(format, content, offset, value)
    file.write_bytes(content)


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def word(name: str, offset: int, format: str, value: int) -> Callable[[Path], None]:
    return lambda folder: replace_word(folder / name, offset, format, value)


def make_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


FAULTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "missing grant": ("grant", "the file is missing", lambda folder: (folder / "grant").unlink()),
    "missing ledger": ("ledger", "the file is missing", lambda folder: (folder / "ledger").unlink()),
    "missing directory": ("grant", "the file is missing", shutil.rmtree),
    "empty grant": ("grant", "the file is cut off", cut("grant", 0)),
    "grant of 10 bytes": ("grant", "the file is cut off", cut("grant", 10)),
    "grant cut in its slices": ("grant", "the file is cut off", cut("grant", 200)),
    "ledger cut by a page": ("ledger", "the file is cut off", cut("ledger", 4096)),
    "ledger cut by a byte": ("ledger", "the file is cut off", lambda folder: os.truncate(
        folder / "ledger", (folder / "ledger").stat().st_size - 1)),
    "another file": ("grant", "the file is not of vgpu-runtime", word("grant", 0, "<Q", 1)),
    "another ABI": ("grant", "the file is of another ABI version", word("grant", 8, "<I", 99)),
    "ledger of another ABI": ("ledger", "the file is of another ABI version", word("ledger", 8, "<I", 99)),
    "larger than it is": ("grant", "the file is cut off", word("grant", 12, "<I", 1 << 20)),
    "no slices": ("grant", "a field is out of range", word("grant", 20, "<I", 0)),
    "too many slices": ("grant", "a field is out of range", word("grant", 20, "<I", 99)),
    "a directory": ("grant", "it is not a regular file", make_folder("grant")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_files_close_the_driver_with_one_line_and_a_cure(make_tenant: Make, quota: int, fault: str) -> None:
    name, reason, break_it = FAULTS[fault]
    tenant = make_tenant(quota)
    assert tenant.directory is not None
    break_it(tenant.directory)
    done = tenant.attempt(*tenant.script(EVERYTHING))
    assert (done.returncode, done.stdout) == (0, str(CLOSED) + "\n")
    path = tenant.directory / name
    assert done.stderr == f"vgpu: {path}: {reason}; start the program again under `vgpu run`\n"


def test_a_grant_that_may_not_be_read_closes_the_driver(make_tenant: Make, quota: int) -> None:
    """Root may read anything: the program becomes somebody else once it has loaded what it needs."""
    tenant = make_tenant(quota)
    assert tenant.directory is not None
    (tenant.directory / "grant").chmod(0)
    become = "if not os.geteuid():\n    os.setgid(65534)\n    os.setuid(65534)\n"
    done = tenant.attempt(*tenant.script(EVERYTHING.replace("made, count", become + "made, count")))
    assert (done.returncode, done.stdout) == (0, str(CLOSED) + "\n")
    assert "/grant: this user may not open it; " in done.stderr


def test_threads_that_come_first_together_say_it_once(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    assert tenant.directory is not None
    (tenant.directory / "grant").unlink()
    script = """
    import threading
    from client import *
    codes, start = [], threading.Barrier(32)
    def first():
        start.wait()
        codes.append(cuda.cuInit(0))
    threads = [threading.Thread(target=first) for _ in range(32)]
    for one in threads: one.start()
    for one in threads: one.join()
    answer(sorted(set(codes)))
    """
    done = tenant.attempt(*tenant.script(script))
    assert done.stdout == f"[{NOT_READY}]\n"
    assert done.stderr.count("\n") == 1


def test_a_closed_stderr_does_not_end_the_program(make_tenant: Make, quota: int) -> None:
    tenant = make_tenant(quota)
    assert tenant.directory is not None
    (tenant.directory / "grant").unlink()
    for close in ("os.close(2)", "r, w = os.pipe(); os.close(r); os.dup2(w, 2)"):
        script = f"""
        import signal
        from client import *
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        {close}
        answer(cuda.cuInit(0))
        """
        done = tenant.attempt(*tenant.script(script))
        assert (done.returncode, done.stdout) == (0, f"{NOT_READY}\n")


@pytest.mark.parametrize("value", ["", None])
def test_no_tenant_named_is_no_tenant(make_tenant: Make, bare: Tenant, quota: int, value: str | None) -> None:
    script = "from client import *\nup()\nanswer(info()[1])"
    tenant = make_tenant(quota)
    environment = {} if value is None else {"VGPU_TENANT": value}
    assert Tenant(tenant.driver).ask(script, **environment) == bare.ask(script) > quota

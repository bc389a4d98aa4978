# SPDX-License-Identifier: Apache-2.0
"""What a context takes: that the charge for it is NVML's figure, with nothing known beforehand."""

from __future__ import annotations

from typing import Any

import pytest
from tools.tenants import Tenant
from tools.watch import Watch


def test_what_contexts_are_charged_is_what_nvml_says(make_tenant: Any, start: Any, watch: Watch, quota: int) -> None:
    """A process that has a context and nothing else, and a second one beside it."""
    tenant = make_tenant(quota)
    for _ in range(2):
        program = start(tenant, "context.py")
        watch.follow(program.process.pid)
        said, figure = program.hear(), watch.ask()
        if figure.now is None:
            pytest.skip("NVML knows the processes here by other pids: run outside of a container")
        assert said["charged"] == figure.now
        assert said["free"] == quota - said["charged"]


def test_a_context_that_does_not_fit_is_refused(make_tenant: Any, bare: Tenant, quota: int) -> None:
    script = """
    context = ctypes.c_void_p()
    cuda = ctypes.CDLL("libcuda.so.1")
    answer([cuda.cuInit(0), cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0)])
    """
    small = make_tenant(16 << 20)
    assert small.ask(script) == [0, 2]
    assert small.usage()[0].memory_used == 0
    assert bare.ask(script) == make_tenant(quota).ask(script) == [0, 0]

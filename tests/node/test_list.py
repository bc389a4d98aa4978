# SPDX-License-Identifier: Apache-2.0
"""`vgpu list`: what tenants hold and may hold, whatever they wrote into their ledgers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

GIB = 2**30
CONTEXT = 300 * 2**20  # what a program's context takes on the simulated one


def test_without_tenants_it_says_so(vgpu: Any) -> None:
    assert vgpu("list").stdout == "no tenants\n"
    assert vgpu.tenants() == []


def test_a_tenant_is_listed_with_its_quota_its_usage_and_its_processes(vgpu: Any) -> None:
    process = vgpu.hold("--name", "a", "--memory", "10GiB", "--cores", 30, do=[4 * GIB - CONTEXT])
    (tenant,) = vgpu.tenants()
    (part,) = tenant.pop("slices")
    assert tenant == {
        "name": "a",
        "kind": "process",
        "directory": str(vgpu.state / "tenants" / "a"),
        "pids": [process.pid],
        "fault": "",
        "host_memory": {"quota": None, "usage": 0, "refusals": 0},
    }
    assert part["quota"].pop("device").startswith("GPU-")
    assert part["quota"] == {
        "device_memory": 143_165 * 2**20, "memory": 10 * GIB, "cores": 30, "policy": "fixed", "spill": 0
    }  # fmt: skip
    assert part["usage"]["memory"] == 4 * GIB
    assert part["usage"]["refusals"] == 0
    assert part["usage"]["spill"] == 0


def test_what_lies_in_host_memory_is_told_apart_from_what_is_page_locked_there(vgpu: Any) -> None:
    first = vgpu.hold("--name", "a", "--memory", "10GiB", "--spill", "4GiB", "--host-memory", "2GiB")
    assert vgpu.cuda("--join", "a", do=[11 * GIB, f"host:{3 * GIB}"])["answers"] == [2, 2]
    second = vgpu.hold("--join", "a", do=[6 * GIB - 2 * CONTEXT, 3 * GIB, f"host:{GIB}"])
    (tenant,) = vgpu.tenants()
    (part,) = tenant["slices"]
    assert (part["quota"]["memory"], part["quota"]["spill"]) == (10 * GIB, 4 * GIB)
    assert (part["usage"]["memory"], part["usage"]["spill"], part["usage"]["refusals"]) == (6 * GIB, 3 * GIB, 1)
    assert tenant["host_memory"] == {"quota": 2 * GIB, "usage": GIB, "refusals": 1}
    head, line = vgpu("list").stdout.splitlines()
    assert "SPILLED" in head
    pids = " ".join(map(str, sorted([first.pid, second.pid])))
    assert " ".join(line.split()).endswith(
        f" 9 GiB / 10 GiB 3 GiB / 4 GiB all 0.0 s 0.0 s 1 1 GiB / 2 GiB, 1 refused {pids}"
    )


def test_page_locked_memory_is_listed_without_a_quota_too(vgpu: Any) -> None:
    vgpu.hold("--name", "a", do=[f"host:{GIB}"])
    (tenant,) = vgpu.tenants()
    assert tenant["host_memory"] == {"quota": None, "usage": GIB, "refusals": 0}
    head, line = vgpu("list").stdout.splitlines()
    assert "HOST MEMORY" in head
    assert "SPILLED" not in head, "nobody has that"
    assert "1 GiB / all" in line


def test_what_is_not_limited_is_null(vgpu: Any) -> None:
    vgpu.hold("--name", "a")
    (tenant,) = vgpu.tenants()
    quota = tenant["slices"][0]["quota"]
    assert (quota["memory"], quota["cores"], quota["policy"]) == (None, None, "none")


def test_refusals_and_launches_are_counted(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "1GiB")
    vgpu.cuda("--join", "a", do=[2 * GIB, 3 * GIB])
    (tenant,) = vgpu.tenants()
    assert tenant["slices"][0]["usage"]["refusals"] == 2


def test_what_the_dead_have_not_given_back_is_not_in_use(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "4GiB", "--spill", "2GiB")
    killed = vgpu.hold("--join", "a", do=[3 * GIB, f"host:{GIB}"])
    (tenant,) = vgpu.tenants()
    used = tenant["slices"][0]["usage"]
    assert (used["memory"], used["spill"]) == (2 * GIB, GIB + 2 * CONTEXT)
    assert tenant["host_memory"]["usage"] == GIB
    killed.kill()
    killed.wait()
    (tenant,) = vgpu.tenants()
    used = tenant["slices"][0]["usage"]
    assert (used["memory"], used["spill"], tenant["host_memory"]["usage"]) == (CONTEXT, 0, 0)


def test_the_table_has_a_line_for_each_slice(vgpu: Any) -> None:
    options = ["--name", "both", "--device", 0, "--device", 1, "--memory", "10GiB", "--cores", 30]
    process = vgpu.hold(*options, sim="2xh200", do=[GIB - CONTEXT])
    lines = vgpu("list", "--sim", "2xh200").stdout.splitlines()
    assert lines[0].split() == ["TENANT", "DEVICE", "MEMORY", "CORES", "DEVICE", "TIME", "THROTTLED", "REFUSED", "PIDS"]
    assert " ".join(lines[1].split()) == f"both 0 1 GiB / 10 GiB 30% fixed 0.0 s 0.0 s 0 {process.pid}"
    assert " ".join(lines[2].split()) == "1 0 B / 10 GiB 30% fixed 0.0 s 0.0 s 0"


def test_the_table_needs_no_driver(vgpu: Any) -> None:
    vgpu.hold("--name", "a", "--memory", "10GiB")
    line = vgpu("list", env={"LD_LIBRARY_PATH": "/nowhere"}).stdout.splitlines()[1]
    assert line.split()[0] == "a"
    assert "10 GiB" in line


# ---- a ledger is the tenant's own to spoil --------------------------------------------------------------


def spoil_by_cutting(path: Path) -> None:
    os.truncate(path, 100)


def spoil_by_emptying(path: Path) -> None:
    os.truncate(path, 0)


def spoil_by_overwriting(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def spoil_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def spoil_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def spoil_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def spoil_by_removing(path: Path) -> None:
    path.unlink()


SPOILERS = [
    spoil_by_cutting,
    spoil_by_emptying,
    spoil_by_overwriting,
    spoil_by_a_pipe,
    spoil_by_a_link,
    spoil_by_a_directory,
    spoil_by_removing,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_ledger_is_reported_and_hides_no_other_tenant(vgpu: Any, spoil: Any) -> None:
    bad = vgpu.start("run", "--sim", "h200", "--name", "bad", "--memory", "1GiB", "--", "sh", "-c", "echo; read x")
    bad.stdout.readline()
    vgpu.hold("--name", "good", "--memory", "2GiB", do=[GIB - CONTEXT])
    spoil(vgpu.state / "tenants" / "bad" / "ledger")
    spoiled, good = vgpu.tenants()
    assert spoiled["fault"].startswith("ledger: ")
    assert spoiled["slices"][0]["usage"]["memory"] == 0
    assert spoiled["slices"][0]["quota"]["memory"] == GIB
    assert spoiled["pids"] == [bad.pid]
    assert good["slices"][0]["usage"]["memory"] == GIB
    table = vgpu("list")
    assert table.returncode == 0
    assert spoiled["fault"] in table.stdout


def test_a_ledger_full_of_lies_shows_no_more_than_the_quota(vgpu: Any) -> None:
    process = vgpu.start("run", "--sim", "h200", "--name", "a", "--memory", "3GiB", "--spill", "2GiB",
                         "--host-memory", "5GiB", "--", "sh", "-c", "echo; read x")  # fmt: skip
    process.stdout.readline()
    path = vgpu.state / "tenants" / "a" / "ledger"
    content = path.read_bytes()
    # The header stays: everything that it announces is forged.
    path.write_bytes(content[:16] + b"\xff" * (len(content) - 16))
    (tenant,) = vgpu.tenants()
    usage = tenant["slices"][0]["usage"]
    assert (usage["memory"], usage["spill"], tenant["host_memory"]["usage"]) == (GIB, 2 * GIB, 5 * GIB)
    assert max(*usage.values(), *tenant["host_memory"].values()) < 2**63
    assert tenant["pids"] == [process.pid]


def test_a_ledger_full_of_lies_spills_nothing_where_nothing_may_spill(vgpu: Any) -> None:
    process = vgpu.start("run", "--sim", "h200", "--name", "a", "--", "sh", "-c", "echo; read x")
    process.stdout.readline()
    path = vgpu.state / "tenants" / "a" / "ledger"
    content = path.read_bytes()
    path.write_bytes(content[:16] + b"\xff" * (len(content) - 16))
    (tenant,) = vgpu.tenants()
    assert tenant["slices"][0]["usage"]["spill"] == 0
    assert tenant["slices"][0]["usage"]["memory"] == tenant["slices"][0]["quota"]["device_memory"]
    assert tenant["host_memory"]["usage"] == 2**63 - 1
    assert vgpu("list").returncode == 0


def test_a_grant_that_is_none_is_left_out(vgpu: Any) -> None:
    vgpu.hold("--name", "a")
    (vgpu.state / "tenants" / "a" / "grant").write_bytes(b"nonsense")
    assert vgpu.tenants() == []


def test_a_reader_that_goes_early_is_no_error(vgpu: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = vgpu("list", capture_output=False, stdout=writer, stderr=-1)
    finally:
        os.close(writer)
    assert done.stderr == ""


def test_json_is_one_object_with_a_list_of_tenants(vgpu: Any) -> None:
    assert json.loads(vgpu("list", "--json").stdout) == {"tenants": []}

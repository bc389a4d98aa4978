# SPDX-License-Identifier: Apache-2.0
"""
CuPy in a tenant of a real GPU: cupy_programs.py POOL [OPTIONS]

Fills the slice through one of CuPy's allocators, is refused, goes on. Prints two lines of JSON, and waits for a line on
stdin after the first, when it is full.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

MIB = 2**20
POOLS = ("default", "managed", "async")


def choose(cupy: Any, name: str) -> Any:
    """Make one of CuPy's pools the allocator; the pool."""
    if name == "default":
        return cupy.get_default_memory_pool()
    pool = cupy.cuda.MemoryPool(cupy.cuda.malloc_managed) if name == "managed" else cupy.cuda.MemoryAsyncPool()
    cupy.cuda.set_allocator(pool.malloc)
    return pool


def take(cupy: Any, chunk: int, most: int) -> tuple[list[Any], str]:
    """Allocate chunks until there are so many bytes or none is left: arrays, and the error's text or nothing."""
    held: list[Any] = []
    try:
        while (len(held) + 1) * chunk <= most:
            held.append(cupy.empty(chunk, dtype=cupy.uint8))
    except (cupy.cuda.memory.OutOfMemoryError, cupy.cuda.runtime.CUDARuntimeError) as error:
        return held, f"{type(error).__name__}: {error}"
    return held, ""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="CuPy in a tenant of a real GPU")
    made.add_argument("pool", choices=POOLS)
    made.add_argument("--chunk", type=int, default=64, metavar="MIB", help="size of one array")
    made.add_argument("--most", type=int, default=2**30, metavar="MIB", help="allocate no more than this")
    return made


def main() -> int:
    options = parser().parse_args()
    import cupy

    pool = choose(cupy, options.pool)
    total = cupy.cuda.runtime.memGetInfo()[1]
    chunk = options.chunk * MIB
    held, error = take(cupy, chunk, options.most * MIB)
    for one in held:
        one.fill(7)
    cupy.cuda.Device().synchronize()
    count = len(held)
    print(json.dumps({"total": total, "taken": count * chunk, "error": error}), flush=True)
    sys.stdin.readline()
    del held[::2], one
    pool.free_all_blocks()
    cupy.cuda.Device().synchronize()
    again, second = take(cupy, chunk, (count - len(held)) * chunk)
    intact = all(int(one[0]) == int(one[-1]) == 7 for one in held)
    print(json.dumps({"reused": len(again) + len(held) == count, "second": second, "intact": intact}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

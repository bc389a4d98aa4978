# SPDX-License-Identifier: Apache-2.0
"""A numba program: compiles a kernel, copies, launches, synchronises. The kernel is timed, not executed."""

from __future__ import annotations

import numpy as np
from numba import cuda


@cuda.jit
def add(x, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.size:
        x[i] += y[i]


def main() -> None:
    device = cuda.get_current_device()
    print(device.name if isinstance(device.name, str) else device.name.decode(), *device.compute_capability)
    values = np.arange(1000, dtype=np.float32)
    one, two = cuda.to_device(values), cuda.to_device(values)
    add[8, 128](one, two)
    cuda.synchronize()
    print("copied", np.array_equal(one.copy_to_host(), values))
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    start.record(stream)
    for _ in range(10):
        add[8, 128, stream](one, two)
    end.record(stream)
    end.synchronize()
    print("streams", cuda.event_elapsed_time(start, end) >= 0.09)


main()

# SPDX-License-Identifier: Apache-2.0
"""Random memory work for one of several processes: ``random_memory.py SEED STEPS FOLDER``.

Handles of memory go through files in the folder, so that processes open what others export, alive or gone. Any code
that the driver should not give here ends the program with a failure.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cuda_prelude import MIB, answer, context, cu, ok, raw, rc

OUT_OF_MEMORY, ITS_OWN, GONE = 2, 201, 205
DESCRIPTOR = cu.CUmemAllocationHandleType(1)


class Handle(ctypes.Structure):
    """The 64 bytes of a handle of memory."""

    _fields_ = (("bytes", ctypes.c_ubyte * 64),)


class Worker:
    """What the process holds, as the calls that give it back."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random, self.folder, self.lib = random.Random(seed), folder, raw()
        self.held: list[Callable[[], int]] = []
        self.properties = cu.CUmemAllocationProp()
        self.properties.type, self.properties.requestedHandleTypes = cu.CUmemAllocationType(1), DESCRIPTOR
        self.properties.location.type = cu.CUmemLocationType(1)
        self.image = cu.CUDA_ARRAY3D_DESCRIPTOR()
        self.image.Width, self.image.Height, self.image.NumChannels = 512, 700, 2
        self.image.Format = cu.CUarray_format(0x20)

    def keep(self, made: tuple[Any, ...], give_back: Callable[[Any], tuple[Any, ...]]) -> bool:
        if rc(made) == OUT_OF_MEMORY:
            return False
        thing = ok(made)
        self.held.append(lambda: rc(give_back(thing)))
        return True

    def allocate(self) -> None:
        self.keep(cu.cuMemAlloc(self.random.choice((100, 70_000, 3 * MIB))), cu.cuMemFree)

    def allocate_async(self) -> None:
        made = cu.cuMemAllocAsync(self.random.choice((1000, 5 * MIB)), 0)
        self.keep(made, lambda pointer: cu.cuMemFreeAsync(pointer, 0))

    def array(self) -> None:
        self.keep(cu.cuArray3DCreate(self.image), cu.cuArrayDestroy)

    def synchronise(self) -> None:
        ok(cu.cuCtxSynchronize())

    def export(self) -> None:
        made, handle = cu.cuMemAlloc(self.random.choice((100, 3 * MIB))), Handle()
        if self.keep(made, cu.cuMemFree):
            code = self.lib.cuIpcGetMemHandle(ctypes.byref(handle), ctypes.c_uint64(int(made[1])))
            assert code in (0, OUT_OF_MEMORY), code
            (self.folder / f"{os.getpid()}-{self.random.randrange(8)}").write_bytes(bytes(handle))

    def open(self) -> None:
        data = self.random.choice([*self.folder.iterdir()] or [Path(os.devnull)]).read_bytes()
        pointer = ctypes.c_uint64()
        if len(data) != ctypes.sizeof(Handle):
            return  # it is being written
        code = self.lib.cuIpcOpenMemHandle_v2(ctypes.byref(pointer), Handle.from_buffer_copy(data), 1)
        assert code in (0, OUT_OF_MEMORY, ITS_OWN, GONE), code
        if not code:
            self.held.append(lambda: self.lib.cuIpcCloseMemHandle(pointer))
            ok(cu.cuMemsetD8(pointer.value, 1, 100))

    def physical(self) -> None:
        made = cu.cuMemCreate(4 * MIB, self.properties, 0)
        if not self.keep(made, cu.cuMemRelease):
            return
        descriptor = ok(cu.cuMemExportToShareableHandle(made[1], DESCRIPTOR, 0))
        self.keep(cu.cuMemImportFromShareableHandle(descriptor, DESCRIPTOR), cu.cuMemRelease)
        self.held.append(lambda: os.close(descriptor) or 0)

    def step(self) -> None:
        self.random.choice((self.allocate, self.allocate_async, self.array, self.synchronise, self.export, self.open,
                            self.physical))()  # fmt: skip
        while len(self.held) > 40 or (self.held and self.random.random() < 0.45):
            assert self.held.pop(self.random.randrange(len(self.held)))() == 0


def main() -> None:
    seed, steps, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    context()
    worker = Worker(seed, folder)
    answer("on")
    for _ in range(steps):
        worker.step()
    answer("done")
    sys.stdin.readline()


main()

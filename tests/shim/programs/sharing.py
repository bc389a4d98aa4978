# SPDX-License-Identifier: Apache-2.0
"""Memory that two programs have: what they need to hand it to each other."""

from __future__ import annotations

import ctypes
import os
import socket

from client import cuda, pointer, size

FD = 1

box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
box.bind(f"\0vgpu-test-{os.getpid()}")


def send(pid: int, descriptor: int) -> None:
    """Hand a descriptor to another program, and close our own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect(f"\0vgpu-test-{pid}")
        socket.send_fds(out, [b"x"], [descriptor])
    os.close(descriptor)


def receive() -> int:
    return socket.recv_fds(box, 1, 1)[1][0]


def export(handle: ctypes.c_uint64) -> tuple[int, int]:
    """What cuMemExportToShareableHandle returns, and the descriptor."""
    descriptor = ctypes.c_int(-1)
    return cuda.cuMemExportToShareableHandle(ctypes.byref(descriptor), handle, FD, 0), descriptor.value


def bring(descriptor: int) -> tuple[int, ctypes.c_uint64]:
    """What cuMemImportFromShareableHandle returns, and the handle."""
    handle = ctypes.c_uint64()
    return cuda.cuMemImportFromShareableHandle(ctypes.byref(handle), ctypes.c_void_p(descriptor), FD), handle


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("bytes", ctypes.c_ubyte * 64),)


def ipc_export(made: ctypes.c_uint64) -> tuple[int, str]:
    handle = IpcHandle()
    return cuda.cuIpcGetMemHandle(ctypes.byref(handle), made), bytes(handle.bytes).hex()


def ipc_open(text: str, function: str = "cuIpcOpenMemHandle_v2") -> tuple[int, ctypes.c_uint64]:
    made, handle = pointer(), IpcHandle((ctypes.c_ubyte * 64)(*bytes.fromhex(text)))
    return getattr(cuda, function)(ctypes.byref(made), handle, 1), made


def ipc_close(made: ctypes.c_uint64) -> int:
    code: int = cuda.cuIpcCloseMemHandle(made)
    return code


# ---- memory of another driver ------------------------------------------------------------------------


class External(ctypes.Structure):
    """CUDA_EXTERNAL_MEMORY_HANDLE_DESC."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("fd", ctypes.c_uint64 * 2),
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 16),
    )


class Buffer(ctypes.Structure):
    """CUDA_EXTERNAL_MEMORY_BUFFER_DESC."""

    _fields_ = (
        ("offset", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 16),
    )


def foreign(amount: int) -> int:
    """Memory that another driver exports, as a descriptor."""
    descriptor = os.memfd_create("graphics")
    os.ftruncate(descriptor, amount)
    return descriptor


def bring_external(descriptor: int, amount: int, kind: int = 1) -> tuple[int, ctypes.c_void_p]:
    memory, of = ctypes.c_void_p(), External(kind=kind, fd=(ctypes.c_uint64 * 2)(descriptor, 0), size=amount)
    return cuda.cuImportExternalMemory(ctypes.byref(memory), ctypes.byref(of)), memory


def buffer_of(memory: ctypes.c_void_p, offset: int, amount: int) -> tuple[int, ctypes.c_uint64]:
    made, of = pointer(), Buffer(offset=offset, size=amount)
    return cuda.cuExternalMemoryGetMappedBuffer(ctypes.byref(made), memory, ctypes.byref(of)), made


# ---- multicast ---------------------------------------------------------------------------------------------


class Team(ctypes.Structure):
    """CUmulticastObjectProp."""

    _fields_ = (
        ("devices", ctypes.c_uint),
        ("size", ctypes.c_size_t),
        ("handles", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


def multicast(amount: int, devices: int) -> ctypes.c_uint64:
    handle, of = ctypes.c_uint64(), Team(devices=devices, size=amount)
    assert cuda.cuMulticastCreate(ctypes.byref(handle), ctypes.byref(of)) == 0
    for device in range(devices):
        assert cuda.cuMulticastAddDevice(handle, device) == 0
    return handle


def unbind(team: ctypes.c_uint64, device: int, offset: int, amount: int) -> int:
    code: int = cuda.cuMulticastUnbind(team, device, size(offset), size(amount))
    return code

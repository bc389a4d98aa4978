# SPDX-License-Identifier: Apache-2.0
"""A program of NVIDIA's cuda.core: memory on a stream, a launch, an event, a graph."""

from __future__ import annotations

from cuda.core import Device, LaunchConfig, ObjectCode, launch


def main() -> None:
    device = Device()
    device.set_current()
    print(device.name, device.properties.multiprocessor_count)
    stream = device.create_stream()
    buffer = device.allocate(1 << 20, stream=stream)
    kernel = ObjectCode.from_cubin(b"\x7fELF" + bytes(64)).get_kernel("tick_1ms")
    shape = LaunchConfig(grid=4, block=64)
    launch(stream, shape, kernel)
    buffer.close(stream)
    stream.sync()
    print("stream")
    launch(stream, shape, kernel)
    event = stream.record()
    event.sync()
    print("event", end=" ")
    builder = device.create_graph_builder().begin_building()
    launch(builder, shape, kernel)
    launch(builder, shape, kernel)
    graph = builder.end_building().complete()
    graph.launch(stream)
    stream.sync()
    print("graph")


main()

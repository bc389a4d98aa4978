# SPDX-License-Identifier: Apache-2.0
"""
PyTorch programs for a tenant of a real GPU: torch_programs.py PROGRAM [OPTIONS]

Each prints facts as lines of JSON, and waits for a line on stdin where it says that it is full. They are what users
write: nothing here knows of a tenant, but for `charged`, which reads the tenant's account to report it.

The allocator is chosen as users choose it, by PYTORCH_CUDA_ALLOC_CONF.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MIB = 2**20


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def wait() -> None:
    sys.stdin.readline()


def charged() -> int | None:
    """Bytes that the tenant is charged; None outside of one."""
    sys.path.insert(0, str(Path(__file__).parents[3] / "shim"))
    import vgpu_shim

    slices = vgpu_shim.slices()
    return slices[0].memory_used if slices else None


def take(torch: Any, chunk: int, most: int) -> tuple[list[Any], str]:
    """Allocate chunks until there are so many bytes or none is left: tensors, and the error's text or nothing."""
    held: list[Any] = []
    try:
        while (len(held) + 1) * chunk <= most:
            held.append(torch.empty(chunk, dtype=torch.uint8, device="cuda"))
    except torch.cuda.OutOfMemoryError as error:
        return held, str(error)
    return held, ""


def write(tensors: Sequence[Any]) -> None:
    for one in tensors:
        one.fill_(7)


def product_is_right(torch: Any) -> bool:
    """Something that has to be computed."""
    left = torch.arange(64 * 64, device="cuda", dtype=torch.float64).reshape(64, 64)
    return bool(torch.equal((left @ left).cpu(), left.cpu() @ left.cpu()))


def fill(torch: Any, options: argparse.Namespace) -> None:
    """Allocate up to the edge, be refused, go on: reuse, give back, reuse again, be refused again."""
    product_is_right(torch)
    free_before, total = torch.cuda.mem_get_info()
    held, error = take(torch, options.chunk * MIB, options.most * MIB)
    write(held)
    torch.cuda.synchronize()
    count, free = len(held), torch.cuda.mem_get_info()[0]
    say(total=total, free_before=free_before, free=free, taken=count * options.chunk * MIB, error=error,
        charged=charged())  # fmt: skip
    wait()
    del held[::2]
    again, error = take(torch, options.chunk * MIB, (count - len(held)) * options.chunk * MIB)
    reused = not error and len(held) + len(again) == count
    amount = len(again) * options.chunk * MIB
    del again
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    returned = torch.cuda.mem_get_info()[0] - free
    large, error = take(torch, amount // 2, amount // 2)
    intact = all(int(one[0]) == 7 and int(one[-1]) == 7 for one in held)
    del large, held
    torch.cuda.empty_cache()
    held, error_again = take(torch, options.chunk * MIB, options.most * MIB)
    del held[-2:]
    say(reused=reused, returned=returned, amount=amount, large=error, intact=intact, again=error_again,
        right=product_is_right(torch))  # fmt: skip


def race(torch: Any, options: argparse.Namespace) -> None:
    """Allocate to the edge and give all back, several times, beside others that do the same; they may have it all."""
    chance, made, refused = random.Random(options.seed), 0, 0
    product_is_right(torch)
    say(ready=True)
    wait()
    while refused < options.rounds:
        held, error = [], ""
        while not error:
            size = 2 * MIB * chance.randint(1, 128)
            more, error = take(torch, size, size)
            held += more
            made += len(more)
        refused += bool(held)
        del more, held
        torch.cuda.empty_cache()
        time.sleep(0.01)
    say(made=made, refused=refused)


def use_shared(connection: Any) -> None:
    """The child of `ipc`: it reads and writes its parent's tensor."""
    tensor = connection.recv()
    first = int(tensor[0])
    tensor.add_(1)
    import torch

    torch.cuda.synchronize()
    connection.send(first)
    connection.recv()
    del tensor
    torch.cuda.synchronize()
    connection.send("closed")


def ipc(torch: Any, options: argparse.Namespace) -> None:
    """A tensor that is shared with a child process."""
    tensor = torch.full((options.most * MIB,), 7, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    before = charged()
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=use_shared, args=(theirs,))
    child.start()
    ours.send(tensor)
    first = ours.recv()
    during, changed = charged(), int(tensor[-1])
    ours.send("close")
    ours.recv()
    child.join()
    say(size=options.most * MIB, before=before, during=during, first=first, changed=changed, status=child.exitcode)


def graph(torch: Any, options: argparse.Namespace) -> None:
    """A captured graph is replayed, also when the slice is full; one that does not fit is refused."""
    source = torch.rand(256, 256, device="cuda")
    weight = torch.rand(256, 256, device="cuda")

    def work() -> Any:
        return torch.relu(source @ weight - 60.0).sum(dim=1)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        result = work()

    def is_right() -> bool:
        source.uniform_()
        captured.replay()
        torch.cuda.synchronize()
        return bool(torch.allclose(result, work()))

    right = all(is_right() for _ in range(20))
    held, error = take(torch, options.chunk * MIB, options.most * MIB)
    del held[-1:]
    right_when_full = is_right()
    too_large = ""
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.empty(torch.cuda.mem_get_info()[1], dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError as caught:
        too_large = str(caught)
    say(right=right, full=error, right_when_full=right_when_full, too_large=too_large, right_after=is_right())


def pinned(torch: Any, options: argparse.Namespace) -> None:
    """Page-locked host memory when the slice is full: a loader's batches, and a large block."""
    from torch.utils.data import DataLoader, TensorDataset

    slot = torch.empty(64, 1024, device="cuda")
    held, error = take(torch, options.chunk * MIB, options.most * MIB)
    data = TensorDataset(torch.arange(64 * 64, dtype=torch.float32).unsqueeze(1).expand(-1, 1024).contiguous())
    total, are_pinned = 0.0, True
    for (batch,) in DataLoader(data, batch_size=64, pin_memory=True, num_workers=2):
        are_pinned &= batch.is_pinned()
        slot.copy_(batch, non_blocking=True)
        torch.cuda.synchronize()
        total += float(slot[:, 0].cpu().sum())
    block = torch.empty(256 * MIB, dtype=torch.uint8, pin_memory=True)
    say(full=error, held=len(held), are_pinned=are_pinned, total=total, expected=float(sum(range(64 * 64))),
        block=block.is_pinned())  # fmt: skip


def train(torch: Any, options: argparse.Namespace) -> None:
    """Steps of a training loop with nine tenths of the slice in use."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(1024, 4096), torch.nn.GELU(), torch.nn.Linear(4096, 1024)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    source = torch.randn(2048, 1024, device="cuda")
    target = source.flip(1)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(model(source), target)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    losses = [step() for _ in range(5)]
    free, total = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free - total // 10), dtype=torch.uint8, device="cuda")
    losses += [step() for _ in range(options.rounds)]
    free, total = torch.cuda.mem_get_info()
    say(total=total, used=total - free, first=losses[0], last=losses[-1], steps=len(losses), ballast=ballast.numel())


PROGRAMS = {one.__name__: one for one in (fill, race, ipc, graph, pinned, train)}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="PyTorch programs for a tenant of a real GPU")
    made.add_argument("program", choices=PROGRAMS)
    made.add_argument("--chunk", type=int, default=64, metavar="MIB", help="size of one tensor")
    made.add_argument("--most", type=int, default=2**30, metavar="MIB", help="allocate no more than this")
    made.add_argument("--rounds", type=int, default=20)
    made.add_argument("--seed", type=int, default=1)
    return made


def main() -> int:
    options = parser().parse_args()
    import torch

    PROGRAMS[options.program](torch, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

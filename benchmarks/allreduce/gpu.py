"""What the reduction costs on one GPU beside the collective: casts, division, queueing, in both front ends.

    python benchmarks/allreduce/gpu.py --out record.json

Runs on one GPU with NCCL to itself. What is measured, and why, is in the README beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import fuse
from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.topology import Topology
from fourminutes.comm.wire import WIRE_DTYPES
from fourminutes.files import write_text
from fourminutes.models import build_model
from fourminutes.plan import ModelPlan, ReducePlan
from fourminutes.record import provenance
from fourminutes.train.precision import in_precision, settle_arithmetic

TOLD_RANKS = 2048  # the arrangements are told of so many, so that the casts scale and the division divides
BUCKET_MIB = 25.0
CLASSES, IMAGE_PX = 1000, 224
WARM_UPS = 12  # DDP times itself until then, which no recording can
COPY_BYTES = 2**30  # far more than any cache

FrontEnd = Callable[[nn.Module], tuple[nn.Module, HybridState | None]]


@dataclass(frozen=True)
class Spread:
    """Times in µs: the median of `n`, and its quartiles."""

    median_us: float
    low_us: float
    high_us: float
    n: int


@dataclass(frozen=True)
class Kernels:
    """The kernels of one step's averages, all buckets one after another, beside what memory allows."""

    front_end: str
    wire: str
    buckets: int
    time: Spread
    moved_bytes: int
    floor_us: float


@dataclass(frozen=True)
class Step:
    """A forward and backward pass of ResNet-50, its gradients averaged through a front end or not at all."""

    front_end: str
    images: int
    recorded: bool
    time: Spread


def main() -> None:
    """Measure, print, record."""
    asked = arguments()
    device = torch.device("cuda", 0)
    settle_arithmetic()
    with alone_on_nccl(device):
        bytes_per_us = 2 * COPY_BYTES / copy_time(device, asked.repeats).median_us
        kernels = [
            kernels_of(front_end, wire, bytes_per_us, device, asked.repeats)
            for front_end in ("hook", "flat")
            for wire in WIRE_DTYPES
        ]
        steps = [
            step_of(name, images, device, asked.repeats, recorded=recorded)
            for images, recorded in ((256, False), (32, False), (32, True))
            for name in FRONT_ENDS
        ]
    print(told(device, bytes_per_us, kernels, steps))
    record = {
        "provenance": provenance().model_dump(),
        "device": torch.cuda.get_device_name(device),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "nccl": torch.cuda.nccl.version()},
        "copy_bytes_per_us": bytes_per_us,
        "kernels": [asdict(each) for each in kernels],
        "steps": [asdict(each) for each in steps],
    }
    write_text(asked.out, json.dumps(record, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="of every measurement; default 50")
    parser.add_argument("--out", type=Path, default=Path("work/allreduce_gpu.json"), help="JSON record to write")
    return parser.parse_args()


@contextmanager
def alone_on_nccl(device: torch.device) -> Iterator[None]:
    """Within this, NCCL's default group is this process."""
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1, device_id=device)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def told_topology() -> Topology:
    """One rank, which is told that it is the first of many; its collectives are over itself."""
    world = distributed.group.WORLD
    return Topology(0, ("here",) * TOLD_RANKS, ((0,),), within=None, across=None, world=world)


def no_front_end(network: nn.Module) -> tuple[nn.Module, None]:
    """Gradients stay as they are."""
    return network, None


def ddp(network: nn.Module) -> tuple[nn.Module, None]:
    """DDP with its own reduction in fp32."""
    return DistributedDataParallel(network, bucket_cap_mb=BUCKET_MIB, gradient_as_bucket_view=True), None


def hook(network: nn.Module, wire: str = "fp16") -> tuple[nn.Module, HybridState]:
    """DDP with the hook."""
    state = HybridState(told_topology(), ReducePlan(wire=wire))
    parallel, _ = ddp(network)
    parallel.register_comm_hook(state, hybrid_hook)
    return parallel, state


def flat(network: nn.Module, wire: str = "fp16") -> tuple[nn.Module, HybridState]:
    """Static buffers."""
    state = HybridState(told_topology(), ReducePlan(wire=wire, front_end="flat"))
    sizes = [4 * weight.numel() for weight in network.parameters()]
    return FlatParallel(network, state, fuse(sizes, threshold_bytes=BUCKET_MIB * 2**20)), state


FRONT_ENDS: dict[str, FrontEnd] = {"none": no_front_end, "DDP": ddp, "hook, fp16": hook, "flat, fp16": flat}


class Trained:
    """ResNet-50 in half precision behind a front end, on one batch that is held."""

    def __init__(self, front_end: FrontEnd, images: int, device: torch.device) -> None:
        network = in_precision(build_model(ModelPlan(), CLASSES, seed=0).to(device), "half", device)
        self.parallel, self.state = front_end(network)
        held = torch.randn(images, 3, IMAGE_PX, IMAGE_PX, device=device)
        self._images = held.contiguous(memory_format=torch.channels_last)
        self._labels = torch.randint(CLASSES, (images,), device=device)

    def step(self) -> None:
        """Forward and backward; the gradients are averaged when it is over."""
        self.parallel.zero_grad(set_to_none=True)
        cross_entropy(self.parallel(self._images), self._labels).backward()


def layout_of(front_end: str, device: torch.device) -> list[int]:
    """Elements of each of ResNet-50's buckets, once the front end has settled them."""
    trained = Trained({"hook": hook, "flat": flat}[front_end], 2, device)
    assert trained.state is not None
    with closing(trained.state):
        for _ in range(3):
            trained.step()
        return trained.state.layout


def kernels_of(front_end: str, wire: str, bytes_per_us: float, device: torch.device, repeats: int) -> Kernels:
    """The averages of a step's buckets, one after another; recorded, so that no launch is waited for."""
    gradients = [torch.randn(elements, device=device) for elements in layout_of(front_end, device)]
    buffers = [gradient.clone() for gradient in gradients]
    state = HybridState(told_topology(), ReducePlan(wire=wire))

    def average_all() -> None:
        for number, buffer in enumerate(buffers):
            state.average(number, buffer)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        average_all()
        stream.synchronize()
        # Each repetition divides anew, and what is timed shall not be the division of zeros.
        refill = partial(torch._foreach_copy_, buffers, gradients)
        time = timed(replay_of(average_all, stream), repeats, before_each=refill)
    moved_bytes = sum(map(moved, buffers)) if wire == "fp32" else sum(moved(each, wire) for each in buffers)
    return Kernels(front_end, wire, len(buffers), time, moved_bytes, moved_bytes / bytes_per_us)


def moved(buffer: Tensor, wire: str = "fp32") -> int:
    """The least bytes: a division in place, or a cast that reads the one and writes the other, and the way back."""
    if wire == "fp32":
        return 2 * buffer.nbytes
    return 2 * (buffer.nbytes + buffer.numel() * WIRE_DTYPES[wire].itemsize)


def step_of(name: str, images: int, device: torch.device, repeats: int, *, recorded: bool) -> Step:
    """A pass through one of `FRONT_ENDS`, its kernels launched one by one or repeated from a recording."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        trained = Trained(FRONT_ENDS[name], images, device)
        for _ in range(WARM_UPS):
            trained.step()
        stream.synchronize()
        work = replay_of(trained.step, stream) if recorded else trained.step
        time = timed(work, repeats)
    if trained.state is not None:
        trained.state.close()
    torch.cuda.synchronize()
    return Step(name, images, recorded, time)


def replay_of(work: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
    """What repeats the kernels of `work`."""
    graph = torch.cuda.CUDAGraph()
    # NCCL's watchdog asks events for their state meanwhile, in a thread of its own.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph.replay


def copy_time(device: torch.device, repeats: int) -> Spread:
    """Of a copy of `COPY_BYTES` on the device."""
    source = torch.randn(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return timed(lambda: target.copy_(source), repeats)


def timed(work: Callable[[], object], repeats: int, *, before_each: Callable[[], object] = lambda: None) -> Spread:
    """By the device's own events around each repetition, after some that are not timed."""
    for _ in range(5):
        work()
    marks = []
    for _ in range(repeats):
        before_each()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    low, median, high = statistics.quantiles(
        [1e3 * start.elapsed_time(end) for start, end in marks], n=4, method="inclusive"
    )
    return Spread(median, low, high, repeats)


def told(device: torch.device, bytes_per_us: float, kernels: list[Kernels], steps: list[Step]) -> str:
    """Both tables, in Markdown."""
    lines = [
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}; a copy moves {bytes_per_us / 1e6:.2f} TB/s",
        "",
        "| front end's buckets | wire | buckets | µs a step | quartiles | memory's floor, µs | to floor |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.front_end} | {one.wire} | {one.buckets} | {one.time.median_us:.0f} | "
        f"{one.time.low_us:.0f} to {one.time.high_us:.0f} | {one.floor_us:.0f} | "
        f"{one.time.median_us / one.floor_us:.2f} |"
        for one in kernels
    ]
    lines += [
        "",
        "| images | launched | front end | µs a pass | quartiles | beyond none, µs |",
        "|---|---|---|---|---|---|",
    ]
    for one in steps:
        none = next(each for each in steps if (each.images, each.recorded) == (one.images, one.recorded))
        lines.append(
            f"| {one.images} | {'CUDA graph' if one.recorded else 'one by one'} | {one.front_end} | "
            f"{one.time.median_us:,.0f} | {one.time.low_us:,.0f} to {one.time.high_us:,.0f} | "
            f"{one.time.median_us - none.time.median_us:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device; this measures a GPU", file=sys.stderr)
        sys.exit(2)
    main()

"""The reduction on NCCL and its stream. One process has NCCL to itself here: its sums are of one rank.

The arrangements are told of more ranks than there are, so that all of their stages run and the division is a real one;
the average of one rank's gradient over P ranks, the others' being zero, is the gradient divided by P.
"""

from contextlib import closing
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fourminutes.comm.collectives import ALGORITHMS, ring
from fourminutes.comm.flat import FlatParallel
from fourminutes.comm.fusion import fuse
from fourminutes.comm.hook import HybridState, hybrid_hook
from fourminutes.comm.topology import Topology
from fourminutes.comm.trace import QUEUED
from fourminutes.plan import ReducePlan

TOLD_RANKS = 6  # no power of two, so that both factors of the division differ from 1
TOLERANCE = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2}
STAGES = {
    "ring": ["all_reduce, world"],
    "hierarchical": ["reduce, within", "all_reduce, across", "broadcast, within"],
    "torus": ["reduce_scatter, within", "all_reduce, across", "all_gather, within"],
}
FRONT_ENDS = ("ddp", "flat")
BUCKET_BYTES = 400_000
LOSS_SCALE = 1024  # so that no gradient is too small for the fp16 wire
each_algorithm = pytest.mark.parametrize("algorithm", STAGES)
each_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS)


def told(group) -> Topology:
    """One rank, which is told that it is the first of several."""
    return Topology(0, ("here",) * TOLD_RANKS, ((0,),), within=group, across=group, world=group)


def network(device) -> nn.Module:
    torch.manual_seed(0)
    convolutions = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(8)
    ]
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), *convolutions, nn.Flatten(), nn.Linear(16 * 14 * 14, 100))
    return layers.to(device, memory_format=torch.channels_last)


def wrapped(front_end: str, module: nn.Module, state: HybridState) -> nn.Module:
    if front_end == "flat":
        sizes = [4 * weight.numel() for weight in module.parameters()]
        return FlatParallel(module, state, fuse(sizes, threshold_bytes=BUCKET_BYTES))
    parallel = DistributedDataParallel(module, bucket_cap_mb=BUCKET_BYTES / 2**20, gradient_as_bucket_view=True)
    parallel.register_comm_hook(state, hybrid_hook)
    return parallel


def pictures(device, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 16, 16, generator=generator).to(device, memory_format=torch.channels_last)


def gradients(module: nn.Module, device, steps: int = 3) -> list[Tensor]:
    """All parameters' gradients of some steps, read as soon as the backward pass returns."""
    collected = []
    for step in range(steps):
        module.zero_grad(set_to_none=True)
        (LOSS_SCALE * module(pictures(device, step)).square().mean()).backward()
        collected += [parameter.grad.clone() for parameter in module.parameters()]
    return collected


@pytest.mark.parametrize("wire", TOLERANCE)
@each_front_end
@each_algorithm
def test_gradients_are_averaged_to_rounding_and_with_the_same_bits(nccl, gpu, algorithm, front_end, wire):
    torch.backends.cudnn.deterministic = True
    expected = gradients(network(gpu), gpu)
    runs = []
    for _ in range(2):
        with closing(HybridState(told(nccl), ReducePlan(algorithm=algorithm, wire=wire))) as state:
            runs.append(gradients(wrapped(front_end, network(gpu), state), gpu))
            assert len(state.layout) > 1
            assert sum(state.layout) == sum(parameter.numel() for parameter in network(gpu).parameters())
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    for ours, theirs in zip(runs[0], expected, strict=True):
        mean = theirs / TOLD_RANKS
        torch.testing.assert_close(ours, mean, rtol=TOLERANCE[wire], atol=TOLERANCE[wire] * float(mean.abs().max()))


@each_front_end
def test_whoever_reads_the_gradients_waits_for_a_slow_reduction(nccl, gpu, front_end, monkeypatch):
    """The reduction runs on its own stream; without an order between the two the gradients would not be divided yet."""

    def slow(tensor, topology):
        torch.cuda._sleep(20_000_000)
        yield from ring(tensor, topology)

    expected = gradients(network(gpu), gpu)
    monkeypatch.setitem(ALGORITHMS, "ring", slow)
    with closing(HybridState(told(nccl), ReducePlan())) as state:
        for ours, theirs in zip(gradients(wrapped(front_end, network(gpu), state), gpu), expected, strict=True):
            torch.testing.assert_close(ours, theirs / TOLD_RANKS, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))


@each_front_end
def test_exposed_time_is_the_devices_and_is_taken_once(nccl, gpu, front_end, monkeypatch):
    """The host returns long before a slow reduction is over, so its clock would see nothing of it."""

    def slow(tensor, topology):
        start.record()
        torch.cuda._sleep(20_000_000)
        end.record()
        yield from ring(tensor, topology)

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    monkeypatch.setitem(ALGORITHMS, "ring", slow)
    with closing(HybridState(told(nccl), ReducePlan())) as state:
        gradients(wrapped(front_end, network(gpu), state), gpu, steps=1)
        exposed_s = state.take_exposed_s()
        assert exposed_s >= start.elapsed_time(end) / 1e3  # of the last bucket alone
        assert state.take_exposed_s() == 0


@each_front_end
@each_algorithm
def test_a_trace_has_every_stretch_in_order_by_the_devices_events(nccl, gpu, algorithm, front_end):
    with closing(HybridState(told(nccl), ReducePlan(algorithm=algorithm, wire="fp16"))) as state:
        module = wrapped(front_end, network(gpu), state)
        gradients(module, gpu)  # DDP has laid out its buckets after this
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        tracer = state.trace(gpu)
        gradients(module, gpu, steps=1)
        state.end_trace()
        end.record()
        spans = tracer.spans()
        gradients(module, gpu, steps=1)
        assert tracer.spans() == spans  # nothing is traced any more
    buckets = range(len(state.layout))
    assert {span.bucket for span in spans} == set(buckets)
    for bucket in buckets:
        own = [span for span in spans if span.bucket == bucket]
        assert [span.name for span in own] == [QUEUED, "cast to the wire", *STAGES[algorithm], "divide"]
        assert all(span.start_s <= span.end_s for span in own)
        assert all(one.end_s == other.start_s for one, other in pairwise(own))
    working = [span for span in spans if span.name != QUEUED]
    # One bucket after another; the Unix time in which spans are given has steps of some 0.2 µs.
    assert all(one.end_s <= other.start_s + 1e-6 for one, other in pairwise(working))
    first_s, last_s = min(span.start_s for span in spans), max(span.end_s for span in spans)
    assert last_s - first_s <= start.elapsed_time(end) / 1e3 + 1e-6


def test_static_buffers_can_be_recorded_in_a_cuda_graph(nccl, gpu):
    """Forward, backward and reduction in one graph: repeated on other pictures, the gradients are theirs."""
    torch.backends.cudnn.deterministic = True
    settings = ReducePlan(algorithm="hierarchical", wire="fp16")
    with closing(HybridState(told(nccl), settings)) as state:
        expected = gradients(wrapped("flat", network(gpu), state), gpu)
    with closing(HybridState(told(nccl), settings)) as state:
        module, held = wrapped("flat", network(gpu), state), pictures(gpu, 99)

        def step() -> None:
            module.zero_grad(set_to_none=True)  # so that the forward pass lends the buffers anew, filled with zeros
            (LOSS_SCALE * module(held).square().mean()).backward()

        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
        module.load_state_dict(before)
        state.take_exposed_s()
        replayed = []
        for number in range(3):
            held.copy_(pictures(gpu, number))
            graph.replay()
            replayed += [parameter.grad.clone() for parameter in module.parameters()]
        assert state.take_exposed_s() == 0  # the events of a recording have no times
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(replayed, expected, strict=True))

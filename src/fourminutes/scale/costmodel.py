"""The time of an all-reduce and of a training step over any number of processes, by equations. No torch.

A first model: one kind of link for all messages, equal buckets that become ready evenly, no jitter between processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fourminutes.comm.fit import cost_terms


@dataclass(frozen=True)
class Link:
    """What carries the messages: `latency_s` a step, in seconds, and `bandwidth_byte_s`, in bytes/s."""

    latency_s: float
    bandwidth_byte_s: float


@dataclass(frozen=True)
class Workload:
    """One optimizer step of one process, whatever their number (weak scaling).

    Attributes:
        compute_s: the step without waiting for gradients: input, forward, backward, optimizer; in seconds.
        backward_s: the part that gradients can be summed beside: the backward pass of the last micro-batch.
        gradient_bytes: size of all gradients on the wire.
        buckets: number of messages that they are fused into, of equal size.
    """

    compute_s: float
    backward_s: float
    gradient_bytes: float
    buckets: int


@dataclass(frozen=True)
class Step:
    """The predicted step: `total_s`, of which `exposed_s` waits for gradients; in seconds."""

    total_s: float
    exposed_s: float


def allreduce_time(algorithm: str, message_bytes: float, processes: int, link: Link, group_ranks: int) -> float:
    """Time of one all-reduce of M bytes over P processes, in seconds.

    t = steps x alpha + volume x M / B, with the algorithm's steps and volume from `comm.fit.cost_terms`: for the ring
    t = 2(P-1) alpha + 2(P-1)/P M/B. The time for adding is part of 1/B. One process takes no time.

    Args:
        algorithm: ring, hierarchical or torus.
        message_bytes: M.
        processes: P.
        link: alpha and B.
        group_ranks: processes a group; the ring has no use for it.

    Raises:
        UserError: there is no equation for the algorithm.
    """
    steps, volume = cost_terms(algorithm, processes, group_ranks)
    return steps * link.latency_s + volume * message_bytes / link.bandwidth_byte_s


def step_time(work: Workload, algorithm: str, processes: int, link: Link, group_ranks: int) -> Step:
    """One step with its all-reduce beside the backward pass, in seconds.

    n buckets become ready evenly over the backward time b and are summed one after another, T each. The last is ready
    when b is over, and the sums end at the latest of "bucket i waits for nobody, those after it queue behind it":

        end = max over i = 1..n of (b i/n + (n-i+1) T),  exposed = end - b = max(T, n T - b (n-1)/n)

    since the terms are linear in i, so that the first or the last of them is the greatest.

    Raises:
        UserError: there is no equation for the algorithm.
    """
    n = work.buckets
    bucket_s = allreduce_time(algorithm, work.gradient_bytes / n, processes, link, group_ranks)
    exposed_s = max(bucket_s, n * bucket_s - work.backward_s * (n - 1) / n)
    return Step(total_s=work.compute_s + exposed_s, exposed_s=exposed_s)


def bucket_count(parameters: int, bucket_mib: float) -> int:
    """How many buckets of `bucket_mib` MiB the gradients of `parameters` parameters fill in fp32."""
    return max(1, math.ceil(parameters * 4 / (bucket_mib * 2**20)))

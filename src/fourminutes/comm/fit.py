"""What a collective costs: its steps and volume, and the link's two constants fitted to measured times. No torch.

An all-reduce of M bytes over P ranks takes

    t = steps x alpha + volume x M / B

with alpha the latency of one step in seconds and B the bandwidth in bytes/s; steps and volume are the algorithm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import nnls

from fourminutes.errors import UserError
from fourminutes.record import CollectiveTiming, LinkFit

# Where measured times don't grow with size, any fast link fits; this one moves everything in no time.
UNLIMITED_BYTE_S = 1e15


def cost_terms(algorithm: str, processes: int, group_ranks: int) -> tuple[int, float]:
    """Steps and volume (bytes through the busiest link, over M) of an all-reduce over P ranks in groups of k.

    With m = ceil(P / k) groups, every stage as a ring of its own:

    - ring: 2(P-1) steps, volume 2(P-1)/P;
    - hierarchical: 4(k-1) + 2(m-1) steps, volume 4(k-1)/k + 2(m-1)/m: the reduction to the master and the broadcast
      in the group cost as much as an all-reduce each, then the masters' all-reduce;
    - torus: 2(k-1) + 2(m-1) steps, volume 2(k-1)/k + 2(m-1)/(m k).

    All follow from the stages. As remembered, unconfirmed, arXiv:1807.11205 has the same hierarchical step count, with
    k = 16, and so at 1,024 ranks 186 steps in place of the ring's 2,046.

    Raises:
        UserError: there is no equation for the algorithm.
    """
    within = min(group_ranks, processes)
    groups = math.ceil(processes / within)
    match algorithm:
        case "ring":
            return 2 * (processes - 1), 2 * (processes - 1) / processes
        case "hierarchical":
            return 4 * (within - 1) + 2 * (groups - 1), 4 * (within - 1) / within + 2 * (groups - 1) / groups
        case "torus":
            return 2 * (within - 1) + 2 * (groups - 1), 2 * (within - 1) / within + 2 * (groups - 1) / (groups * within)
        case _:
            raise UserError(f"algorithm: there is no cost equation for {algorithm!r}; use ring, hierarchical or torus")


def fit_links(timings: Sequence[CollectiveTiming], processes: int) -> tuple[LinkFit, ...]:
    """Latency and bandwidth of each algorithm in `timings`, measured over `processes` ranks."""
    algorithms = dict.fromkeys(timing.algorithm for timing in timings)
    return tuple(
        _fit_link([timing for timing in timings if timing.algorithm == name], processes) for name in algorithms
    )


def _fit_link(timings: Sequence[CollectiveTiming], processes: int) -> LinkFit:
    """Least squares of the relative error, (predicted - median) / median, over alpha >= 0 and 1/B >= 0."""
    rows = []
    for timing in timings:
        steps, volume = cost_terms(timing.algorithm, processes, timing.group_ranks)
        rows.append((steps / timing.median_s, volume * timing.message_bytes / timing.median_s))
    # Columns of like size, or the solver's tolerance would drop the seconds a byte beside the seconds a step.
    matrix = np.array(rows)
    scale = np.linalg.norm(matrix, axis=0)
    (alpha_s, inverse_bandwidth), _ = nnls(matrix / scale, np.ones(len(rows)))
    return LinkFit(
        algorithm=timings[0].algorithm,
        alpha_s=float(alpha_s / scale[0]),
        bandwidth_byte_s=1 / max(float(inverse_bandwidth / scale[1]), 1 / UNLIMITED_BYTE_S),
    )

"""What a collective costs: its steps and volume, and the link's two constants fitted to measured times. No torch.

An all-reduce of M bytes over P ranks takes

    t = steps x alpha + volume x M / B

with alpha the latency of one step in seconds and B the bandwidth in bytes/s; steps and volume are the algorithm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourminutes.comm.calls import Calls, StageCalls
from fourminutes.errors import UserError
from fourminutes.plan import Wire
from fourminutes.record import CollectiveTiming, Interval, LinkFit, StageFit

# Where measured times don't grow with size, any fast link fits; this one moves everything in no time.
UNLIMITED_BYTE_S = 1e15
_RESAMPLES = 200
# A stage that ends with the one before it adds nothing; as a relative square it would outweigh all others.
_LEAST_SHARE = 0.02


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
    """Latency and bandwidth of each arrangement in `timings`, measured over `processes` ranks."""
    alike: dict[tuple[str, int, Wire], list[CollectiveTiming]] = {}
    for timing in timings:
        alike.setdefault((timing.algorithm, timing.group_ranks, timing.wire), []).append(timing)
    return tuple(_fit_link(members, processes) for members in alike.values())


def _fit_link(timings: Sequence[CollectiveTiming], processes: int) -> LinkFit:
    first = timings[0]
    terms = [cost_terms(timing.algorithm, processes, timing.group_ranks) for timing in timings]
    moved_bytes = [volume * timing.message_bytes for (_, volume), timing in zip(terms, timings, strict=True)]
    alpha_s, beta_s_byte = fit_affine(
        [steps for steps, _ in terms], moved_bytes, [timing.median_s for timing in timings]
    )
    return LinkFit(
        algorithm=first.algorithm,
        group_ranks=first.group_ranks,
        wire=first.wire,
        alpha_s=alpha_s,
        bandwidth_byte_s=1 / max(beta_s_byte, 1 / UNLIMITED_BYTE_S),
    )


def fit_stages(calls: Sequence[Calls]) -> tuple[StageFit, ...]:
    """Latency and seconds a byte of each stage of each arrangement in `calls`, with 95 % intervals.

    The intervals are percentiles over resampled calls: at each size as many as there were, with replacement.
    """
    alike: dict[tuple[str, str, int, Wire], list[_Point]] = {}
    for one in calls:
        for stage in one.stages:
            point = _Point(stage, least_s=_LEAST_SHARE * float(np.median(one.seconds)))
            alike.setdefault((one.algorithm, stage.stage, one.group_ranks, one.wire), []).append(point)
    random = np.random.default_rng(0)
    fits = []
    for (algorithm, stage_name, group_ranks, wire), points in alike.items():
        alpha, beta = _stage_constants(points, random)
        fits.append(
            StageFit(
                algorithm=algorithm,
                stage=stage_name,
                group_ranks=group_ranks,
                wire=wire,
                alpha_s=alpha,
                beta_s_byte=beta,
                sizes=len(points),
            )
        )
    return tuple(fits)


@dataclass(frozen=True)
class _Point:
    """A stage's calls at one size. What adds less than `least_s` to a call counts as if it added that."""

    calls: StageCalls
    least_s: float

    def median_s(self, random: np.random.Generator | None = None) -> float:
        """The median, of the calls or of a sample of them."""
        seconds = np.array(self.calls.seconds)
        sample = seconds if random is None else random.choice(seconds, len(seconds))
        return max(self.least_s, float(np.median(sample)))


def _stage_constants(points: Sequence[_Point], random: np.random.Generator) -> tuple[Interval, Interval]:
    """Alpha and beta of one stage."""
    payloads = [point.calls.payload_bytes for point in points]
    steps = [1] * len(points)
    fitted = fit_affine(steps, payloads, [point.median_s() for point in points])
    resampled = [fit_affine(steps, payloads, [point.median_s(random) for point in points]) for _ in range(_RESAMPLES)]
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    alpha, beta = (
        Interval(value=value, low=float(min(low[place], value)), high=float(max(high[place], value)))
        for place, value in enumerate(fitted)
    )
    return alpha, beta


def fit_affine(steps: Sequence[float], moved_bytes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The alpha and beta of t = steps x alpha + bytes x beta, neither below zero, with the least relative squares.

    What is squared is (predicted - measured) / measured, so that small messages count as much as large ones.
    """
    from scipy.optimize import nnls  # takes a third of a second, which whoever fits nothing needn't wait for

    rows = np.array([steps, moved_bytes], dtype=float).T / np.array(seconds, dtype=float)[:, None]
    # Columns of like size, or the solver's tolerance would drop the seconds a byte beside the seconds a step.
    scale = np.linalg.norm(rows, axis=0)

    (alpha_s, beta_s_byte), _ = nnls(rows / scale, np.ones(len(rows)))
    return float(alpha_s / scale[0]), float(beta_s_byte / scale[1])

"""One training step over P ranks: computing, fusion, communication beside it, the slowest of the ranks. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

from fourminutes.comm.fusion import buckets_of
from fourminutes.comm.tuner import Readiness, messages_of
from fourminutes.plan import ReducePlan
from fourminutes.scale.events import Travel, busy_s, communicate, last_ends_s
from fourminutes.scale.network import Costs, Part

#: A bucket size, in MiB, beyond which every tensor is, so that each goes alone.
ALONE_MIB = 1e-9
# How finely the distribution of the slowest rank is taken; an odd number has its median.
_QUANTILES = 21


@dataclass(frozen=True)
class Compute:
    """What one rank does in a step by itself; in seconds.

    Attributes:
        input_s: waiting for the loader.
        forward_s: the forward pass, and whole the micro-batches before the last one.
        readiness: gradients of the last backward pass, by tensor, and when each is ready from its begin on.
        optimizer_s: the update.
        spread: standard deviation of a rank's computing from step to step, as a share of it.
    """

    input_s: float
    forward_s: float
    readiness: Readiness
    optimizer_s: float
    spread: float = 0.0

    @property
    def backward_s(self) -> float:
        """The last backward pass."""
        return max(self.readiness.ready_s)

    @property
    def total_s(self) -> float:
        """The step of one rank that waits for nobody."""
        return self.input_s + self.forward_s + self.backward_s + self.optimizer_s


@dataclass(frozen=True)
class Step:
    """A predicted step; times in seconds.

    Attributes:
        total_s: expected length.
        low_s: 2.5 % of steps are shorter, since some rank is always the slowest; without spread `total_s`.
        high_s: 2.5 % are longer.
        alone_s: what one rank takes that waits for nobody.
        exposed_s: communication after the last gradient is ready.
        late_s: waiting for the slowest rank's computing.
        communication_s: in which some bucket is on its way.
        buckets: number of messages.
        travels: the way of each, from the begin of the backward pass, without lateness.
    """

    total_s: float
    low_s: float
    high_s: float
    alone_s: float
    exposed_s: float
    late_s: float
    communication_s: float
    buckets: int
    travels: tuple[Travel, ...]

    @property
    def efficiency_percent(self) -> float:
        """Against as many ranks that wait for nobody."""
        return 100 * self.alone_s / self.total_s

    @property
    def idle_percent(self) -> float:
        """Share of the step in which a rank computes nothing: waits for gradients, or for a slower one."""
        return 100 * (self.total_s - self.alone_s) / self.total_s


def simulate_step(compute: Compute, reduce: ReducePlan, costs: Costs, processes: int, group_ranks: int = 1) -> Step:
    """Simulate one step over `processes` ranks, all alike but for when they are late.

    A bucket may go once its last tensor is ready on the slowest rank and the buckets before it have gone. A rank's
    computing is taken as normally distributed, with `compute.spread`; the slowest of P has the quantile U^(1/P) of it,
    over the uniform U, of which equally likely values are gone through.

    Args:
        compute: one rank's own work.
        reduce: algorithm or choices, wire, fusion, lanes, and `group_ranks` where it names them.
        costs: what an all-reduce takes.
        processes: number of ranks, P.
        group_ranks: ranks a group for arrangements that name no number.

    Raises:
        UserError: an algorithm has no equation, or is still to be tuned.
    """
    buckets = buckets_of(compute.readiness.tensor_bytes, reduce)
    messages = list(messages_of(compute.readiness, buckets, reduce.wire))
    ready_s = [ready for ready, _ in messages]
    ways = [way_of(reduce, costs, size, processes, reduce.group_ranks or group_ranks) for _, size in messages]
    own_s = compute.total_s - compute.optimizer_s
    factors = np.array(slowest_factors(processes, compute.spread))
    ends_s = np.maximum(factors * compute.backward_s, last_ends_s(ready_s, ways, reduce.lanes, factors))
    steps = (compute.input_s + compute.forward_s) * factors + ends_s + compute.optimizer_s
    travels = communicate(ready_s, ways, reduce.lanes)
    exposed_s = max(0.0, max(travel.end_s for travel in travels) - compute.backward_s)
    return Step(
        total_s=float(np.mean(steps)),
        low_s=float(np.quantile(steps, 0.025)),
        high_s=float(np.quantile(steps, 0.975)),
        alone_s=compute.total_s,
        exposed_s=exposed_s,
        late_s=own_s * (float(np.mean(factors)) - 1),
        communication_s=busy_s(travels),
        buckets=len(buckets),
        travels=travels,
    )


def way_of(reduce: ReducePlan, costs: Costs, size_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
    """The stages of a message of that size, by the algorithm that is set or chosen for it."""
    if reduce.algorithm != "hybrid":
        return costs.parts(reduce.algorithm, size_bytes, processes, group_ranks)
    choice = next(choice for choice in reduce.choices if choice.holds(size_bytes))
    return costs.parts(choice.algorithm, size_bytes, processes, choice.group_ranks or group_ranks)


def slowest_factors(processes: int, spread: float) -> tuple[float, ...]:
    """How much longer than the mean the slowest of P ranks computes, at equally likely quantiles."""
    return _slowest_factors(processes, spread) if processes > 1 and spread > 0 else (1.0,)


@lru_cache(maxsize=4096)
def _slowest_factors(processes: int, spread: float) -> tuple[float, ...]:
    uniform = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return tuple(np.maximum(0.0, 1 + spread * ndtri(uniform ** (1 / processes))).tolist())

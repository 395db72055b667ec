"""Measuring the collectives on the processes at hand, one algorithm beside another."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, distributed

from fourminutes.comm.collectives import ALGORITHMS, run
from fourminutes.comm.fit import UNLIMITED_BYTE_S, fit_links
from fourminutes.comm.launch import Launch, device_of, process_group, resolve_launch
from fourminutes.comm.topology import Topology, discover, placement
from fourminutes.errors import UserError
from fourminutes.plan import CommBenchPlan
from fourminutes.progress import progress
from fourminutes.record import CollectiveTiming, CommRecord, LinkFit, provenance

WARMUP_CALLS = 2
# On one host there is one group by host, and the hierarchy would have no second level to show.
_GROUP_RANKS_ON_ONE_HOST = 2


def run_bench(settings: CommBenchPlan, *, plan: str) -> CommRecord | None:
    """Time every algorithm at every size over all processes; rank 0 gets the record, the others None.

    Called by every process of the launcher. Groups are `settings.group_ranks` ranks; left to null they are the hosts,
    or pairs where all processes share one host. `torus` is measured where groups are of one size.

    Args:
        settings: sizes, repeats, groups.
        plan: name of the plan, for the record.

    Raises:
        UserError: the number of processes is not the one that the settings ask for.
    """
    launch = resolve_launch()
    if launch.world_size != settings.processes:
        n = settings.processes
        raise UserError(
            f"comm.processes: {n} are asked for, {launch.world_size} run; start it by "
            f"`fourminutes launch --processes {n} -- fourminutes comm bench ...`, by torchrun or by srun"
        )
    with process_group(launch):
        topology = discover(launch, settings.group_ranks or (_GROUP_RANKS_ON_ONE_HOST if launch.is_one_host else None))
        timings = tuple(_measure(settings, launch, topology))
        where = placement(launch, topology)
    if not launch.is_first:
        return None
    return CommRecord(
        plan=plan,
        settings=settings,
        placement=where,
        provenance=provenance(),
        timings=timings,
        fits=fit_links(timings, launch.world_size),
    )


def bench_table(record: CommRecord) -> str:
    """The record's timings and fits as two text tables."""
    timings = [
        (
            f"{timing.message_bytes / 1024:g}",
            timing.algorithm,
            timing.group_ranks,
            f"{timing.median_s * 1e3:.3f}",
            f"{timing.lower_quartile_s * 1e3:.3f} to {timing.upper_quartile_s * 1e3:.3f}",
            f"{timing.bus_gbyte_s:.3f}",
        )
        for timing in record.timings
    ]
    fits = [(fit.algorithm, f"{fit.alpha_s * 1e6:.1f}", _bandwidth(fit)) for fit in record.fits]
    headers = ["KiB", "algorithm", "ranks a group", "median ms", "quartiles ms", "bus GB/s"]
    return "\n\n".join(
        (
            tabulate(timings, headers=headers, disable_numparse=True, colalign=("right", *["left"] * 5)),
            tabulate(fits, headers=["fit", "latency a step, us", "bandwidth GB/s"], disable_numparse=True),
        )
    )


def _bandwidth(fit: LinkFit) -> str:
    return "no limit seen" if fit.bandwidth_byte_s >= UNLIMITED_BYTE_S else f"{fit.bandwidth_byte_s / 1e9:.3f}"


@dataclass(frozen=True)
class _Stopwatch:
    """Times blocking calls that all ranks enter together."""

    device: torch.device

    def seconds(self, algorithm: str, tensor: Tensor, topology: Topology) -> float:
        self._settle()
        distributed.barrier()
        self._settle()
        start = time.perf_counter()
        run(ALGORITHMS[algorithm], tensor, topology)
        self._settle()
        return time.perf_counter() - start

    def _settle(self) -> None:
        """Wait for the device; the CPU's collectives are done when they return."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _measure(settings: CommBenchPlan, launch: Launch, topology: Topology) -> Iterator[CollectiveTiming]:
    algorithms = [name for name in ALGORITHMS if name != "torus" or topology.is_even]
    calls = len(settings.sizes_kib) * (WARMUP_CALLS + settings.repeats)
    stopwatch = _Stopwatch(device_of(launch))
    with progress(calls, "round", "collectives", enabled=launch.is_first) as bar:
        for size_kib in settings.sizes_kib:
            # Zeros stay zeros under any number of sums.
            tensor = torch.zeros(size_kib * 256, dtype=torch.float32, device=stopwatch.device)
            shape = len(algorithms), WARMUP_CALLS + settings.repeats
            times_s = torch.zeros(shape, dtype=torch.float64, device=stopwatch.device)
            # Interleaved, so that a disturbance of the machine hits all algorithms alike.
            for call, (row, name) in itertools.product(range(shape[1]), enumerate(algorithms)):
                times_s[row, call] = stopwatch.seconds(name, tensor, topology)
                bar.update(row == 0)
            distributed.all_reduce(times_s, op=distributed.ReduceOp.MAX)
            for name, measured_s in zip(algorithms, times_s[:, WARMUP_CALLS:].tolist(), strict=True):
                yield timing_of(name, measured_s, tensor.nbytes, topology)


def timing_of(algorithm: str, measured_s: list[float], message_bytes: int, topology: Topology) -> CollectiveTiming:
    """Quartiles and bus bandwidth of one algorithm at one size, from the times of its calls in seconds.

    The bus bandwidth is that of nccl-tests, for every algorithm alike: 2(P-1)/P M/t over P processes, with the median.
    """
    lower, median, upper = np.quantile(measured_s, (0.25, 0.5, 0.75)).tolist()
    processes = topology.world_size
    return CollectiveTiming(
        algorithm=algorithm,
        group_ranks=processes if algorithm == "ring" else topology.group_ranks,
        message_bytes=message_bytes,
        repeats=len(measured_s),
        median_s=median,
        lower_quartile_s=lower,
        upper_quartile_s=upper,
        bus_gbyte_s=2 * (processes - 1) / processes * message_bytes / median / 1e9,
    )

"""What one rank of the benchmark does; rank 0 prints what was measured as JSON."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gradients import Pass, ddp_pass, flat_pass, hook_pass, sizes_of, tensor_pass
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from fourminutes.comm.collectives import ALGORITHMS, Summation, hybrid
from fourminutes.comm.group import process_group
from fourminutes.comm.launch import Launch, resolve_launch
from fourminutes.comm.topology import Topology, discover
from fourminutes.comm.tune import tune
from fourminutes.comm.tuner import Readiness, best_fusion, curves_of, fusions, predicted_s, tuned
from fourminutes.plan import ReducePlan
from fourminutes.record import Tuning, read_record

#: None but the first is one that the tuner measures.
SIZES_KIB = (1, 2, 8, 32, 128, 512, 2 * 1024, 8 * 1024, 32 * 1024)
_LARGE_KIB = 4 * 1024

Times = dict[str, list[float]]


def measure(launch: Launch, groups: Sequence[int], rounds: int) -> dict[str, Any]:
    """Tune, then time messages of every size, all ways in turns."""
    topology = discover(launch)
    grouped = {size: topology.regrouped(size) for size in groups}
    tuning = _from_first(tune(launch, list(grouped.values()), wire="fp32", budget_s=15))
    ways = _ways(topology, grouped, tuning)
    return {
        "tuning": tuning.model_dump(mode="json"),
        "messages": {size: _message_times(ways, size, rounds) for size in SIZES_KIB},
        "predicted_s": {size: _predictions(tuning, size * 1024) for size in SIZES_KIB},
    }


def measure_set(
    launch: Launch, network: str, part: int, groups: Sequence[int], tuning: Tuning, rounds: int
) -> dict[str, Any]:
    """Time a network's gradient set, some ways and the hybrid in turns.

    Of each part in processes of its own, since buffers for all ways at once would not fit in memory. Single algorithms
    have the bucket size that the tuner chooses for the hybrid.
    """
    topology = discover(launch)
    sizes = sizes_of(network)
    settings = _settings_for(sizes, tuning)
    parts: list[dict[str, Callable[[], Pass]]] = [
        {"hybrid, hook": partial(hook_pass, sizes, topology, settings), "ddp": partial(ddp_pass, sizes)},
        {
            "ring": partial(flat_pass, sizes, topology, _single(settings, "ring")),
            "call a tensor": partial(tensor_pass, sizes, topology),
        },
    ]
    for size in groups:
        own = topology.regrouped(size)
        ways = ("hierarchical", "torus")
        parts.append({f"{way} of {size}": partial(flat_pass, sizes, own, _single(settings, way)) for way in ways})
    builders = {"hybrid": partial(flat_pass, sizes, topology, settings)} | parts[part]
    return {"bucket_mib": settings.bucket_mib, "times": _built_in_turns(builders, rounds)}


def measure_loopback(launch: Launch, rounds: int) -> dict[str, Any]:
    """ResNet-50's gradient set through our hook and through DDP as it comes, with the same number format."""
    topology = discover(launch)
    tuning = _from_first(tune(launch, [topology.regrouped(2)], wire="fp32", budget_s=15))
    sizes = sizes_of("resnet50")
    tuned_settings = _settings_for(sizes, tuning)
    fp32 = {
        "hook": partial(hook_pass, sizes, topology, ReducePlan()),
        "hook, tuned": partial(hook_pass, sizes, topology, tuned_settings),
        "buffers": partial(flat_pass, sizes, topology, ReducePlan()),
        "ddp": partial(ddp_pass, sizes),
    }
    fp16 = {
        "hook": partial(hook_pass, sizes, topology, ReducePlan(wire="fp16")),
        "ddp": partial(ddp_pass, sizes, default_hooks.fp16_compress_hook),
    }
    sets = {
        "resnet50, fp32": [{"times": _built_in_turns(fp32, rounds)}],
        "resnet50, fp16": [{"times": _built_in_turns(fp16, rounds)}],
    }
    return {"tuning": tuning.model_dump(mode="json"), "sets": sets}


def _ways(topology: Topology, grouped: Mapping[int, Topology], tuning: Tuning) -> dict[str, Summation]:
    """Every single algorithm over every grouping, and the hybrid."""
    ways: dict[str, Summation] = {"ring": lambda tensor: ALGORITHMS["ring"](tensor, topology)}
    for (size, own), name in itertools.product(grouped.items(), ("hierarchical", "torus")):
        ways[f"{name} of {size}"] = lambda tensor, name=name, own=own: ALGORITHMS[name](tensor, own)  # type: ignore[misc]
    return ways | {"hybrid": hybrid(tuning.choices, topology)}


def _message_times(ways: Mapping[str, Summation], size_kib: int, rounds: int) -> Times:
    tensor = torch.zeros(size_kib * 256)
    passes = {name: _summing(way, tensor) for name, way in ways.items()}
    return _in_turns(passes, rounds if size_kib <= _LARGE_KIB else max(8, rounds // 2))


def _summing(way: Summation, tensor: Tensor) -> Callable[[], None]:
    def one_pass() -> None:
        for _ in way(tensor):
            pass

    return one_pass


def _built_in_turns(builders: Mapping[str, Callable[[], Pass]], rounds: int) -> Times:
    """As `_in_turns`, of passes that are made for it and let go of afterwards."""
    passes = {name: build() for name, build in builders.items()}
    times = _in_turns(passes, rounds)
    for one in passes.values():
        one.close()
    passes.clear()
    gc.collect()
    return times


def _settings_for(sizes: Sequence[int], tuning: Tuning) -> ReducePlan:
    """Choices and bucket size for gradients that are all ready at once."""
    readiness = Readiness(tuple(4 * size for size in sizes), (0.0,) * len(sizes))
    found = fusions(readiness, curves_of(tuning.timings), tuning.choices, "fp32")
    return tuned(ReducePlan(), tuning.model_copy(update={"bucket_mib": best_fusion(found).bucket_mib}))


def _single(settings: ReducePlan, algorithm: str) -> ReducePlan:
    return settings.model_copy(update={"algorithm": algorithm, "choices": ()})


def _predictions(tuning: Tuning, message_bytes: int) -> dict[str, float]:
    curves = curves_of(tuning.timings)
    named = {f"{name} of {ranks}" if name != "ring" else name: curve for (name, ranks), curve in curves.items()}
    hybrid_s = predicted_s(curves, tuning.choices, message_bytes)
    return {name: curve.at(message_bytes) for name, curve in named.items()} | {"hybrid": hybrid_s}


def _in_turns(passes: Mapping[str, Callable[[], None]], rounds: int) -> Times:
    """Seconds of every pass in every round after one that warms up; that of its slowest rank."""
    times: Times = {name: [] for name in passes}
    for number, (name, one_pass) in itertools.product(range(rounds + 1), passes.items()):
        distributed.barrier()
        start_s = time.perf_counter()
        one_pass()
        slowest_s = torch.tensor([time.perf_counter() - start_s], dtype=torch.float64)
        distributed.all_reduce(slowest_s, op=distributed.ReduceOp.MAX)
        if number:
            times[name].append(float(slowest_s))
    return times


def _from_first(tuning: Tuning) -> Tuning:
    values = [tuning]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def main() -> None:
    """Join the others and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["messages", "set", "loopback"])
    parser.add_argument("--groups", type=int, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--tuning", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    launch = resolve_launch()
    with process_group(launch):
        if asked.what == "messages":
            found = measure(launch, asked.groups, asked.rounds)
        elif asked.what == "loopback":
            found = measure_loopback(launch, asked.rounds)
        else:
            tuning = read_record(asked.tuning, Tuning)
            found = measure_set(launch, asked.network, asked.part, asked.groups, tuning, asked.rounds)
        distributed.barrier()
        if launch.is_first:
            print(json.dumps(found))


if __name__ == "__main__":
    main()

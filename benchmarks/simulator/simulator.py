"""Simulated steps against replayed ones, over hosts with limited links on one machine.

    python benchmarks/simulator/simulator.py --out benchmarks/simulator/records

Needs root. Every case is written when it is measured; the same line again goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fourminutes.files import write_text
from fourminutes.plan import ModelName, ModelPlan
from fourminutes.record import ReplayRecord, read_record
from fourminutes.report.evidence import Sourced
from fourminutes.report.tables_validation import replays_table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from support.hosts import hosts, missing, run_on  # noqa: E402 - the tests have the same hosts

RATE, RATE_BYTE_S = "200mbit", 25e6
NETWORKS: tuple[ModelName, ...] = ("resnet50", "alexnet_bn")
RANKS = (2, 4, 8)
#: fp16 bytes of each network's gradients, and where the paper's second segment begins.
GRADIENT_BYTES = {"resnet50": 51e6, "alexnet_bn": 125e6}
SEGMENTS = {"resnet50": 76, "alexnet_bn": 20}
_TIMEOUT_S = 3600.0


def main() -> None:
    """Measure what is missing, and print what the simulation makes of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/simulator/records"), help="folder of the records")
    parser.add_argument("--ranks", type=int, nargs="+", choices=RANKS, default=RANKS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each case")
    parser.add_argument("--only-print", action="store_true", help="measure nothing")
    asked = parser.parse_args()
    if not asked.only_print:
        if lack := missing():
            sys.exit(f"simulator.py: {lack}")
        measure(asked.out, asked.ranks, asked.networks, asked.repeats)
    records = [Sourced(path, read_record(path, ReplayRecord)) for path in sorted(asked.out.glob("*.json"))]
    print(replays_table(records).markdown())


def measure(out: Path, counts: list[int], networks: list[ModelName], repeats: int) -> None:
    """Replay every network over every number of hosts."""
    out.mkdir(parents=True, exist_ok=True)
    for network in networks:
        moments = measured_moments(network, out / "moments" / f"{network}.json")
        for ranks in counts:
            record = out / f"{network}-{ranks}.json"
            print(f"{record.name} ...", file=sys.stderr, flush=True)
            # A place of its own for each, told in the record without what only this machine has.
            cases = Path("work") / "simulator" / record.name
            write_text(cases, json.dumps(plan_of(network, ranks, moments, repeats)))  # JSON is YAML as well
            with hosts(ranks, rate=RATE) as made:
                line = [sys.executable, "-m", "fourminutes", "scale", "replay", str(cases), "--out", str(record)]
                line += ["--link", f"{RATE_BYTE_S * 8 / 1e6:g} Mbit/s a host, in network namespaces of one machine"]
                run_on(made, line, {"OMP_NUM_THREADS": "1"}, timeout_s=_TIMEOUT_S)


def measured_moments(network: ModelName, kept: Path) -> list[float]:
    """When each gradient is ready on this CPU, with 4 images of 224 px; measured once, then read."""
    if not kept.is_file():
        import torch

        from fourminutes.comm.ready import noise, readiness_of
        from fourminutes.models import build_model

        model = build_model(ModelPlan(name=network), 1000, seed=0)
        moments = readiness_of(model, noise(4, 224, torch.device("cpu"))).ready_s
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(moments) + "\n")
    found: list[float] = json.loads(kept.read_text())
    return found


def plan_of(network: ModelName, ranks: int, moments: list[float], repeats: int) -> dict[str, Any]:
    """The cases of one network on so many ranks."""
    return {
        "model": {"name": network},
        "ready_s": moments,
        "repeats": repeats,
        "cases": dict(wire_bound(network, ranks)) | dict(latency_bound(ranks)),
    }


def wire_bound(network: ModelName, ranks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Gradients in fp16, beside backward passes half as long, as long and twice as long as a ring of them all."""
    ring_s = 2 * (ranks - 1) / ranks * GRADIENT_BYTES[network] / RATE_BYTE_S
    pairs = {"algorithm": "hierarchical", "group_ranks": 2}
    small = {"algorithm": "hierarchical", "group_ranks": 2, "up_to_kib": 256}
    hybrid = {"algorithm": "hybrid", "choices": [small, {"algorithm": "ring"}]}

    def case(times: float, **reduce: Any) -> dict[str, Any]:
        return {"backward_s": round(times * ring_s, 2), "reduce": {"wire": "fp16", "lanes": 1, **reduce}}

    yield "ring, 25 MiB, pass 1x", case(1, bucket_mib=25)
    yield "ring, 4 MiB, 4 lanes, pass 0.5x", case(0.5, bucket_mib=4, lanes=4)
    yield "ring, 1 MiB, 4 lanes, pass 2x", case(2, bucket_mib=1, lanes=4)
    yield "pairs, 25 MiB, pass 1x", case(1, bucket_mib=25, **pairs)
    yield "pairs, 4 MiB, 4 lanes, pass 1x", case(1, bucket_mib=4, lanes=4, **pairs)
    yield "hybrid, 1 MiB, pass 1x", case(1, bucket_mib=1, **hybrid)
    yield "hybrid, segments, pass 0.5x", case(0.5, front_end="flat", segments=[SEGMENTS[network]], **hybrid)


def latency_bound(ranks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """One call for each gradient of at most 64 KiB, beside a pass that hides little of it."""
    groups = [size for size in (2, 4) if size < ranks] or [2]
    ways: dict[str, dict[str, Any]] = {"ring": {}}
    ways |= {f"groups of {size}": {"algorithm": "hierarchical", "group_ranks": size} for size in groups}
    for name, way in ways.items():
        yield (
            f"{name}, a call a small tensor",
            {"backward_s": 0.1, "tensors": "small", "reduce": {"bucket_mib": 0.0001, "lanes": 1, **way}},
        )


if __name__ == "__main__":
    main()

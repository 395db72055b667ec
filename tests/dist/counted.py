"""One rank on a host of its own: sums a message by every arrangement, and reads its link's counter before and after."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from fourminutes.comm.collectives import ALGORITHMS, Algorithm
from fourminutes.comm.launch import process_group, resolve_launch
from fourminutes.comm.topology import Topology, discover

CALLS = 5


def sent_bytes() -> int:
    """Bytes that this host's link has sent so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if "eth0:" in line).split(":")[1].split()[8])


def counted(algorithm: Algorithm, topology: Topology, message_bytes: int) -> dict[str, Any]:
    """Of one call on average: what this rank handed over to each stage, and what its link sent."""
    tensor = torch.zeros(message_bytes // 4)
    list(algorithm(tensor, topology))  # connections are made at the first use
    settled()
    before = sent_bytes()
    for _ in range(CALLS):
        stages = {str(stage): stage.payload_bytes for stage in algorithm(tensor, topology)}
    settled()
    return {"payload_bytes": stages, "sent_bytes": (sent_bytes() - before) / CALLS}


def settled() -> None:
    """Every rank is through with all that it sent: two rounds of a small sum, whose own bytes hardly count."""
    for _ in range(2):
        distributed.all_reduce(torch.zeros(1))


def main() -> None:
    """Join the others; rank 0 prints what all of them counted."""
    launch = resolve_launch()
    with process_group(launch):
        topology = discover(launch, 2)
        own = {name: counted(one, topology, int(sys.argv[1])) for name, one in ALGORITHMS.items()}
        everyones: list[dict[str, dict[str, Any]]] = [own] * launch.world_size
        distributed.all_gather_object(everyones, own)
    if launch.is_first:
        gathered = {
            name: {key: [rank[name][key] for rank in everyones] for key in ("payload_bytes", "sent_bytes")}
            for name in ALGORITHMS
        }
        print(json.dumps(gathered))


if __name__ == "__main__":
    main()

"""One rank on a host of its own: sums a message by every arrangement, and reads its link's counter before and after."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from fourminutes.comm.collectives import ALGORITHMS, Algorithm
from fourminutes.comm.group import process_group
from fourminutes.comm.launch import resolve_launch
from fourminutes.comm.topology import Topology, discover

CALLS = 5


def sent_bytes() -> int:
    """Bytes that this host's link has sent so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if "eth0:" in line).split(":")[1].split()[8])


def counted(algorithm: Algorithm, topology: Topology, message_bytes: int, slots: Sequence[str]) -> dict[str, Any]:
    """Of each stage on average over some calls: what this rank handed over to it, and what its link then sent.

    Ranks go through `slots`, the stages of all of them, together; one that takes no part in a stage waits.
    """
    tensor = torch.zeros(message_bytes // 4)
    payload_bytes = {str(stage): stage.payload_bytes for stage in algorithm(tensor, topology)}  # connects, too
    sent = dict.fromkeys(slots, 0.0)
    for _ in range(CALLS):
        stages = algorithm(tensor, topology)
        coming = next(stages, None)
        for slot in slots:
            settled()
            before = sent_bytes()
            if str(coming) == slot:
                coming = next(stages, None)  # a stage is over when the next one is about to begin
            settled()
            sent[slot] += (sent_bytes() - before) / CALLS
    return {slot: {"payload_bytes": payload_bytes.get(slot, 0), "sent_bytes": sent[slot]} for slot in slots}


def settled() -> None:
    """Every rank is through with all that it sent: two rounds of a small sum, whose own bytes hardly count."""
    for _ in range(2):
        distributed.all_reduce(torch.zeros(1))


SLOTS = {
    "ring": ("all_reduce, world",),
    "hierarchical": ("reduce, within", "all_reduce, across", "broadcast, within"),
    "torus": ("reduce_scatter, within", "all_reduce, across", "all_gather, within"),
}


def main() -> None:
    """Join the others; rank 0 prints what all of them counted."""
    launch = resolve_launch()
    with process_group(launch):
        topology = discover(launch, 2)
        message_bytes = int(sys.argv[1])
        own = {name: counted(one, topology, message_bytes, SLOTS[name]) for name, one in ALGORITHMS.items()}
        everyones: list[dict[str, dict[str, Any]]] = [own] * launch.world_size
        distributed.all_gather_object(everyones, own)
    if launch.is_first:
        by_name = {
            name: {slot: [rank[name][slot] for rank in everyones] for slot in slots} for name, slots in SLOTS.items()
        }
        print(json.dumps(by_name))


if __name__ == "__main__":
    main()

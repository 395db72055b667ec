"""Joining the other processes, and the device that this one computes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from fourminutes.comm.launch import TIMEOUT_S, Launch
from fourminutes.comm.watched import watch_from_first
from fourminutes.errors import UserError

# Collectives give up later than who watches over the ranks does, which knows why. (NCCL then aborts the process.)
COLLECTIVES_WAIT_LONGER_S = 5.0


def device_of(launch: Launch) -> torch.device:
    """The device this process computes on: a GPU of its own where there are GPUs, else the CPU.

    Raises:
        UserError: the host shows fewer GPUs than it has processes.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible == 0:
        return torch.device("cpu")
    if visible == 1 and launch.launcher == "slurm":
        return torch.device("cuda", 0)  # Slurm may show each task its own GPU only.
    if launch.local_world_size > visible:
        raise UserError(
            f"CUDA_VISIBLE_DEVICES: {launch.local_world_size} processes on this host, but {visible} GPUs are visible; "
            "start one process a GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )
    return torch.device("cuda", launch.local_rank)


@contextmanager
def process_group(launch: Launch, *, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Join the other processes for the length of the block: NCCL where the device is a GPU, else gloo.

    One process alone joins nothing. The group is destroyed at the end, after an error too.

    Args:
        launch: this process's place.
        timeout_s: how long a collective waits for the other processes before it fails, in seconds.

    Raises:
        UserError: the host shows fewer GPUs than it has processes.
    """
    device = device_of(launch)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if launch.world_size == 1:
        yield
        return
    if launch.is_one_host and "lo" in (name for _, name in socket.if_nameindex()):
        # gloo would look up the host's own name, which many machines resolve wrongly or not at all.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=launch.init_method,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        watch_from_first(launch)
        yield
    finally:
        distributed.destroy_process_group()

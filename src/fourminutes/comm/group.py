"""Joining the other processes, and the device that this one computes on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from fourminutes.comm.interface import interface_towards, interfaces
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


def require_device(name: str, wanted: str, launch: Launch) -> None:
    """Make sure that `name` runs on what its plan's `device` wants.

    Raises:
        UserError: there is no GPU, and it wants one.
    """
    if wanted == "gpu" and device_of(launch).type != "cuda":
        raise UserError(
            f"{name}: device gpu: torch finds none on {platform.node()}; `fourminutes doctor` says more, and with "
            "device auto it runs on what there is"
        )


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
    # gloo would look up the host's own name, which many machines resolve wrongly, as to 127.0.1.1, or not at all.
    if (interface := "lo" if launch.is_one_host else interface_towards(launch.another_host)) in interfaces():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
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

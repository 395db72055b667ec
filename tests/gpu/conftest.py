"""What needs a GPU; where torch sees none, every test here is skipped and says so, in CI too."""

from __future__ import annotations

import pytest
import torch
from torch import distributed


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    """The GPU on which everything here runs."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def nccl(gpu):
    """NCCL with this process alone, as the default group; what several ranks do on it is tested nowhere here."""
    store = distributed.HashStore()
    distributed.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=gpu)
    yield distributed.group.WORLD
    distributed.destroy_process_group()

"""Real processes for tests: `run_ranks` starts them, joins them in a gloo group, and brings back what they return."""

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from support.forkserver import PROCESSES

# Eight ranks with several threads each may share two loaded cores.
TIMEOUT_S = 300


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call ``function(launch, *args)`` in `world_size` processes of one gloo group; the results in rank order.

    `function` stands at the top of its module. A rank that raises fails the test with its traceback.
    """
    with TemporaryDirectory() as folder:
        ranks = [
            PROCESSES.Process(target=_rank_main, args=(function, rank, world_size, folder, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(TIMEOUT_S)
        hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
            process.join()
        outcomes = [_outcome(Path(folder), rank) for rank in range(world_size)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, _Failure)]
    assert not failures, "\n".join(failure.text for failure in failures)
    assert not hanging, f"ranks {hanging} did not end within {TIMEOUT_S} s"
    return outcomes


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _rank_main(function: Callable[..., Any], rank: int, world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    import torch

    from fourminutes.comm.group import process_group
    from fourminutes.comm.launch import Launch

    torch.set_num_threads(1)
    launch = Launch("torchrun", rank, world_size, rank, world_size, init_method=f"file://{folder}/meeting")
    try:
        with process_group(launch, timeout_s=60):
            outcome = function(launch, *args)
    except BaseException:
        outcome = _Failure(f"rank {rank}:\n{traceback.format_exc()}")
    (Path(folder) / f"rank-{rank}").write_bytes(pickle.dumps(outcome))


def _outcome(folder: Path, rank: int) -> Any:
    path = folder / f"rank-{rank}"
    return pickle.loads(path.read_bytes()) if path.exists() else _Failure(f"rank {rank}: ended without a result")

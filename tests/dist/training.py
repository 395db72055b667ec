"""Training on a miniature data set, in this process or in several real ones; what the tests of it have in common."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.forkserver import PROCESSES
from torch.optim.optimizer import register_optimizer_step_post_hook

from fourminutes.cli import main
from fourminutes.data.index import build_index
from fourminutes.data.manifest import make_manifest
from fourminutes.data.shard import make_shard
from fourminutes.data.synthetic import synthesize
from fourminutes.plan import SPLITS, Plan, load_plan
from fourminutes.record import Manifest, RunRecord, read_record
from fourminutes.train.accounting import PARTS

STEPS = 10  # of every run below: 2 epochs of 5
MIDDLE = 7  # in the second epoch

DATA: dict[str, Any] = {
    "dataset": "mini",
    "source": {"kind": "synthetic", "classes": 4, "train_per_class": 23, "val_per_class": 5, "side_px": 40},
    # Numbers that neither ranks nor batches divide.
    "resplit": {"train": 92, "val": 19},
    "shards": {"train": 3, "val": 2},
    "max_broken_percent": 20,
}
RUN: dict[str, Any] = {
    "epochs": 2,
    "label_smoothing": 0.1,
    "model": {"name": "resnet_small", "image_px": 32, "width": 0.25},
    "optimizer": {"kind": "lars"},
    "schedule": {"base_rate": 1.0, "warmup_epochs": 1},
    "batch": {"global_batch": 16, "per_device": 4},
    "loader": {"threads": 1, "chunk_images": 8, "shuffle_window_images": 32},
    "checkpoint": {"every_steps": 3, "keep": 2},
    # Several buckets, so that their layout matters.
    "reduce": {"bucket_mib": 0.02},
}


# What happens within a process while it trains.
Disturbance = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Bench:
    """A folder with the miniature data set, in which plans are written and run."""

    folder: Path
    manifest: Manifest
    data_folder: Path

    def plan(self, name: str, **changes: Any) -> Plan:
        """A plan of one run named `run`, on the bench's data; `changes` are laid over the run's values."""
        raw = {"name": name, "data": DATA, "runs": {"run": RUN | changes}}
        path = self.path(name)
        path.write_text(yaml.safe_dump(raw))
        plan = load_plan(path)
        plan.manifest.parent.mkdir(parents=True, exist_ok=True)
        plan.manifest.write_text(self.manifest.model_dump_json())
        return plan

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"


@contextmanager
def made_bench(folder: Path) -> Iterator[Bench]:
    """The miniature data set in `folder`, which is the current one meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "data.yaml").write_text(yaml.safe_dump({"name": "data", "data": DATA}))
        data = load_plan(folder / "data.yaml").data
        assert data is not None
        synthesize(data.source_folder, data.source)
        index = data.folder / "index.parquet"
        build_index(data.source_folder, index, resplit=data.resplit)
        for split in SPLITS:
            of = data.shards.of(split)
            for shard in range(of):
                make_shard(
                    index,
                    split=split,
                    shard=shard,
                    of=of,
                    out=data.folder,
                    recipe=data.recipe,
                    max_broken_percent=data.max_broken_percent,
                )
        manifest = make_manifest(data.folder, out=folder / "manifest.json", expect=None)
        yield Bench(folder, manifest, folder / data.folder)


@contextmanager
def signal_after_step(step: int, number: signal.Signals) -> Iterator[None]:
    """Send this very process a signal after the given optimizer step."""
    left = iter(range(step - 1, -1, -1))

    def count(*_: object) -> None:
        if next(left, None) == 0:
            os.kill(os.getpid(), number)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def launch(
    bench: Bench, plan: Plan, disturbances: dict[int, Disturbance] | None = None
) -> tuple[list[int | None], str]:
    """Run `plan` on its processes, some of them disturbed, by rank. Gives exit statuses and rank 0's stderr.

    As soon as one of them is killed, all are, as a cluster's launcher does it.
    """
    path, world_size = bench.path(plan.name), plan.runs["run"].processes
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    undisturbed: dict[int, Disturbance] = dict.fromkeys(range(world_size), nullcontext)
    processes = [
        PROCESSES.Process(target=one_process, args=(path, torchrun_variables(rank, world_size, port), disturbance))
        for rank, disturbance in (undisturbed | (disturbances or {})).items()
    ]
    for process in processes:
        process.start()
    running = {process.sentinel: process for process in processes}
    while running and (ended := wait(list(running), timeout=120)):
        gone = [running.pop(sentinel) for sentinel in ended]
        if any(process.exitcode == -signal.SIGKILL for process in gone):
            for process in running.values():
                process.kill()
    for process in running.values():
        process.kill()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes], path.with_suffix(".0.log").read_text()


def one_process(path: Path, environ: dict[str, str], disturbance: Disturbance) -> None:
    """What `fourminutes train` is as one of several processes, with its stderr in a file."""
    os.environ |= environ
    os.chdir(path.parent)
    with path.with_suffix(f".{environ['RANK']}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv = ["fourminutes", "train", "--plan", str(path), "--run", "run"]
    with disturbance():
        main()


def torchrun_variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def record_of(plan: Plan) -> RunRecord:
    return read_record(plan.run_record("run"), RunRecord)


def assert_whole(record: RunRecord, manifest: Manifest) -> None:
    """What holds for every finished run of `RUN`."""
    train_images, val_images = manifest.splits["train"].samples, manifest.splits["val"].samples
    assert [epoch.steps for epoch in record.epochs] == [STEPS // 2, STEPS]
    for epoch in record.epochs:
        assert epoch.val_images == val_images
        assert epoch.train_images + epoch.dropped_images == train_images
        times = epoch.times
        assert sum(getattr(times, f"{part}_s") for part in PARTS) == pytest.approx(times.total_s)
        assert min(times.compute_s, times.optimizer_s, times.evaluation_s, times.input_wait_s) > 0

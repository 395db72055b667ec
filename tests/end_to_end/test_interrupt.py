"""A run that is interrupted from the keyboard goes on from where it stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.clone import Clone, fresh_clone, wait_until

from fourminutes.plan import load_plan
from fourminutes.record import RunRecord, read_record

PLAN = """
name: small
data:
  dataset: small
  source: {kind: synthetic, classes: 4, train_per_class: 60, val_per_class: 4, side_px: 40}
  shards: {train: 2, val: 1}
  max_broken_percent: 20
runs:
  a:
    processes: PROCESSES
    epochs: 16
    model: {name: resnet_small, image_px: 32}
    loader: {threads: 1, chunk_images: 16}
    schedule: {base_rate: 0.1}
    optimizer: {kind: sgd}
    batch: {global_batch: 32, per_device: 16}
"""
TRAIN = ["snakemake", "train", "--config", "plan=small.yaml"]


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_in_mid_run_costs_nothing_but_the_time_until_the_next_start(tmp_path: Path, processes: int):
    clone = fresh_clone(tmp_path)
    (clone.folder / "small.yaml").write_text(PLAN.replace("PROCESSES", str(processes)))
    interrupt_after_first_epoch(clone)
    record_path = clone.folder / load_plan(clone.folder / "small.yaml").run_record("a")
    assert not record_path.exists()
    assert "run the same command to go on" in log(clone)

    done = clone.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    first, second = read_record(record_path, RunRecord).sessions
    assert (first.from_step, first.ended, second.ended) == (0, "interrupted", "finished")
    assert first.to_step == second.from_step > 0


def interrupt_after_first_epoch(clone: Clone) -> None:
    """Start training, and do what a terminal does on Ctrl-C: signal every process of the group."""
    snakemake = clone.start(*TRAIN)
    try:
        wait_until(snakemake, lambda: "epoch 1/" in log(clone))
        os.killpg(snakemake.pid, signal.SIGINT)
        assert snakemake.wait(timeout=120) != 0
    finally:
        if snakemake.poll() is None:
            os.killpg(snakemake.pid, signal.SIGKILL)
            snakemake.wait()


def log(clone: Clone) -> str:
    path = clone.folder / "logs" / "small" / "train" / "a.log"
    return path.read_text() if path.exists() else ""

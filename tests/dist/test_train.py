"""Training: exact evaluation, equal bits from equal seeds and after interruptions, on real gloo processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fourminutes.cli import main
from fourminutes.data.index import build_index
from fourminutes.data.loader import Batch
from fourminutes.data.manifest import make_manifest
from fourminutes.data.shard import make_shard
from fourminutes.data.synthetic import synthesize
from fourminutes.errors import Interrupted, RunFailed, UserError
from fourminutes.plan import SPLITS, Plan, RunPlan, load_plan
from fourminutes.record import Manifest, RunRecord, read_record
from fourminutes.train import train
from fourminutes.train.accounting import PARTS, StepClock
from fourminutes.train.checkpoint import FINAL, SHARED
from fourminutes.train.course import Course
from fourminutes.train.evaluate import batch_sums, evaluate
from fourminutes.train.loop import accumulate_gradients
from fourminutes.train.ranks import Ranks
from fourminutes.train.run import parameter_checksum
from fourminutes.train.setup import settle_arithmetic

ALONE = Ranks(rank=0, world_size=1, group=None)
# Commands are this interpreter's, whether or not its environment is activated.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
STEPS = 10  # of every run below: 2 epochs of 5
MIDDLE = 7  # in the second epoch

DATA: dict[str, Any] = {
    "dataset": "mini",
    "source": {"kind": "synthetic", "classes": 4, "train_per_class": 23, "val_per_class": 5, "side_px": 40},
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


@dataclass(frozen=True)
class Bench:
    """A folder with the miniature data set, in which plans are written and run."""

    folder: Path
    manifest: Manifest

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


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("train")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "data.yaml").write_text(yaml.safe_dump({"name": "data", "data": DATA}))
        data = load_plan(folder / "data.yaml").data
        assert data is not None
        synthesize(data.source_folder, data.source)
        index = data.folder / "index.parquet"
        build_index(data.source_folder, index)
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
        yield Bench(folder, make_manifest(data.folder, out=folder / "manifest.json", expect=None))


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


# Every process would spend seconds on importing torch and DALI; forked from one that has them, it spends none.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["fourminutes.cli", "fourminutes.train"])


def launch(
    bench: Bench, plan: Plan, *, ranks: tuple[int, ...] = (), step: int = 0, number: signal.Signals = signal.SIGTERM
) -> tuple[list[int | None], str]:
    """Run `plan` on its processes; a signal comes to `ranks` after `step`. Gives exit statuses and rank 0's stderr."""
    path, world_size = bench.path(plan.name), plan.runs["run"].processes
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    signals = [(step, number) if rank in ranks else None for rank in range(world_size)]
    processes = [
        PROCESSES.Process(target=one_process, args=(path, torchrun_variables(rank, world_size, port), signals[rank]))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
    return [process.exitcode for process in processes], path.with_suffix(".0.log").read_text()


def one_process(path: Path, environ: dict[str, str], stop: tuple[int, signal.Signals] | None) -> None:
    """What `fourminutes train` is as one of several processes, with its stderr in a file."""
    os.environ |= environ
    os.chdir(path.parent)
    with path.with_suffix(f".{environ['RANK']}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv = ["fourminutes", "train", "--plan", str(path), "--run", "run"]
    with signal_after_step(*stop) if stop else nullcontext():
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


@pytest.fixture(scope="module")
def undisturbed(bench) -> RunRecord:
    """One process, start to end."""
    record = train(bench.plan("undisturbed"), "run")
    assert record is not None
    return record


# --- one process ----------------------------------------------------------------------------------------------------


def test_one_process_trains_and_evaluates_every_image_once(bench, undisturbed):
    assert_whole(undisturbed, bench.manifest)
    assert undisturbed.placement.backend is None
    assert [session.ended for session in undisturbed.sessions] == ["finished"]
    assert undisturbed == read_record(Path("results/undisturbed/runs/run.json"), RunRecord)


def test_the_final_weights_stay_and_the_checkpoints_go(undisturbed):
    (home,) = Path("work/undisturbed").iterdir()
    assert [path.name for path in home.iterdir()] == [FINAL]
    weights = torch.load(home / FINAL, weights_only=True)
    assert parameter_checksum(SimpleNamespace(state_dict=lambda: weights)) == undisturbed.parameter_checksum


def test_one_seed_gives_the_same_bits_and_another_gives_others(bench, undisturbed):
    again = train(bench.plan("again"), "run")
    other = train(bench.plan("other-seed", seed=1), "run")
    assert again.parameter_checksum == undisturbed.parameter_checksum
    assert [epoch.train_loss for epoch in again.epochs] == [epoch.train_loss for epoch in undisturbed.epochs]
    assert other.parameter_checksum != undisturbed.parameter_checksum


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_in_mid_epoch_costs_no_bit(bench, undisturbed, number):
    plan = bench.plan(f"stopped-{number.name.lower()}")
    with signal_after_step(MIDDLE, number), pytest.raises(Interrupted, match=f"checkpoint at step {MIDDLE}; run the"):
        train(plan, "run")
    assert not plan.run_record("run").exists()
    record = train(plan, "run")
    assert record.parameter_checksum == undisturbed.parameter_checksum
    assert [epoch.train_loss for epoch in record.epochs] == [epoch.train_loss for epoch in undisturbed.epochs]
    assert [(session.from_step, session.to_step, session.ended) for session in record.sessions] == [
        (0, MIDDLE, "interrupted"),
        (MIDDLE, STEPS, "finished"),
    ]


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(bench, undisturbed, capfd):
    plan = bench.plan("damaged")
    with signal_after_step(MIDDLE, signal.SIGTERM), pytest.raises(Interrupted):
        train(plan, "run")
    (newest,) = Path("work/damaged").glob(f"*/step-{MIDDLE:08d}")
    content = bytearray((newest / SHARED).read_bytes())
    content[-100] ^= 1
    (newest / SHARED).write_bytes(content)
    record = train(plan, "run")
    assert f"{newest}: is damaged" in capfd.readouterr().err
    assert record.sessions[-1].from_step == 6
    assert record.parameter_checksum == undisturbed.parameter_checksum


def test_another_recipe_does_not_go_on_from_this_ones_checkpoint(bench):
    with signal_after_step(MIDDLE, signal.SIGTERM), pytest.raises(Interrupted):
        train(bench.plan("recipe"), "run")
    record = train(bench.plan("recipe", label_smoothing=0.0), "run")
    assert [session.from_step for session in record.sessions] == [0]


def test_a_loss_that_is_no_number_ends_the_run(bench):
    plan = bench.plan("diverged", optimizer={"kind": "sgd"}, schedule={"base_rate": 1e30})
    with pytest.raises(RunFailed, match=r"diverged: the loss is no finite number by step \d; lower"):
        train(plan, "run")
    assert not plan.run_record("run").exists()


def test_bf16_keeps_weights_in_fp32(bench):
    train(bench.plan("bf16", precision="bf16"), "run")
    (final,) = Path("work/bf16").glob(f"*/{FINAL}")
    weights = torch.load(final, weights_only=True).values()
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float32}


# --- what a user can get wrong --------------------------------------------------------------------------------------


def test_another_number_of_processes_says_how_to_launch(bench):
    with pytest.raises(UserError, match=r"asks for 2 processes, but 1 were started; .*launch --processes 2 -- four"):
        train(bench.plan("lonely", processes=2), "run")


def test_a_missing_manifest_says_how_to_make_it(bench):
    plan = bench.plan("no-manifest")
    plan.manifest.unlink()
    with pytest.raises(UserError, match=r"results/no-manifest/manifest\.json: .*snakemake"):
        train(plan, "run")


def test_a_training_set_below_one_global_batch_is_refused(bench):
    with pytest.raises(UserError, match=r"batch\.global_batch 400 is more than the \d+ training images"):
        train(bench.plan("too-large", batch={"global_batch": 400, "per_device": 4}), "run")


# --- several processes ----------------------------------------------------------------------------------------------


def test_two_processes_by_torchrun_and_a_signal_to_one_of_them(bench):
    undisturbed = bench.plan("torchrun", processes=2)
    # Without "--" torchrun takes "--run" for an abbreviation of an option of its own.
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
    command = [*torchrun, "fourminutes", "train", "--plan", str(bench.path("torchrun")), "--run", "run"]
    subprocess.run(command, cwd=bench.folder, env=os.environ | ENVIRONMENT, check=True, timeout=120)
    record = record_of(undisturbed)
    assert_whole(record, bench.manifest)
    assert (record.placement.launcher, record.placement.backend) == ("torchrun", "gloo")

    stopped = bench.plan("stopped-2", processes=2)
    statuses, stderr = launch(bench, stopped, ranks=(1,), step=MIDDLE)
    assert statuses == [75, 75], stderr
    # The other hears of it one step later.
    assert f"checkpoint at step {MIDDLE + 1}; run the same command to go on" in stderr
    assert launch(bench, stopped)[0] == [0, 0]
    assert record_of(stopped).parameter_checksum == record.parameter_checksum
    assert [epoch.val_loss for epoch in record_of(stopped).epochs] == [epoch.val_loss for epoch in record.epochs]


def test_a_diverged_run_leaves_the_last_checkpoint_that_is_sound(bench):
    """The loss of step 2 is no number, and weights with it; a checkpoint of step 2 would be of no use."""
    changes = {"optimizer": {"kind": "sgd"}, "schedule": {"base_rate": 1e30}, "checkpoint": {"every_steps": 1}}
    plan = bench.plan("diverged-2", processes=2, **changes)
    statuses, stderr = launch(bench, plan)
    assert statuses == [1, 1]
    assert "the run diverged: the loss is no finite number by step 2" in stderr
    assert [home.name for home in Path("work/diverged-2").glob("*/step-*")] == ["step-00000001"]


def test_four_processes_killed_in_mid_epoch_lose_no_bit(bench):
    """With four, sums depend on the layout of DDP's buckets: it must be that of the undisturbed run."""
    undisturbed, killed = bench.plan("whole-4", processes=4), bench.plan("killed-4", processes=4)
    assert launch(bench, undisturbed)[0] == [0] * 4
    assert launch(bench, killed, ranks=(0, 1, 2, 3), step=MIDDLE, number=signal.SIGKILL)[0] == [-signal.SIGKILL] * 4
    assert launch(bench, killed)[0] == [0] * 4
    record = record_of(killed)
    assert_whole(record, bench.manifest)
    assert record.sessions[-1].from_step == 6
    assert record.sessions[0].ended == "running"
    assert record.parameter_checksum == record_of(undisturbed).parameter_checksum


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_fp32_is_never_tf32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    settle_arithmetic()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def parts_of(model: nn.Module, micro_batches: int) -> Any:
    """As much of the parts as the gradient needs."""
    settings = RunPlan.model_validate({"batch": {"global_batch": 8, "per_device": 8 // micro_batches}})
    with_autocast = torch.autocast("cpu", enabled=False)
    return SimpleNamespace(settings=settings, network=model, autocast=lambda: with_autocast, without_reduce=nullcontext)


def test_micro_batches_accumulate_to_the_gradient_of_the_whole_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 5
    gradients = []
    for micro_batches in (1, 4):
        model.zero_grad()
        batches = zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True)
        course = Course(StepClock(torch.device("cpu")))
        accumulate_gradients(parts_of(model, micro_batches), course, (Batch(*batch) for batch in batches))
        spent_s = course.clock.spent_s()
        assert min(spent_s["other"], spent_s["input_wait"], spent_s["compute"]) > 0  # what came before is no wait
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, accumulated, rtol=1e-5, atol=1e-7)


def test_sums_of_a_batch_by_hand():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4], [9.0, 8, 7, 6, 5, 4]])
    loss, top1, top5, count = batch_sums(logits, torch.tensor([0, 4, 5])).tolist()
    assert (top1, top5, count) == (1, 2, 3)
    log_sum = torch.logsumexp(logits[0].double(), 0).item()
    assert loss == pytest.approx((log_sum - 9) + (log_sum - 5) + (log_sum - 4))


def test_top5_of_fewer_classes_takes_all_of_them():
    assert batch_sums(torch.eye(3), torch.tensor([1, 2, 0])).tolist()[1:] == [0, 3, 3]


def test_evaluation_passes_over_empty_batches_and_refuses_a_wrong_count():
    empty = Batch(torch.zeros(0, 3, 1, 1), torch.zeros(0, dtype=torch.int64))
    batches = [Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])), empty]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    precision = torch.autocast("cpu", enabled=False)
    assert evaluate(model, batches, ALONE, expected=2, autocast=precision).images == 2
    with pytest.raises(RunFailed, match="2 images were seen where the manifest has 3"):
        evaluate(model, batches, ALONE, expected=3, autocast=precision)

"""Training: exact evaluation, equal bits from equal seeds and after interruptions, on real gloo processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from training import MIDDLE, STEPS, Bench, assert_whole, launch, made_bench, record_of, signal_after_step

from fourminutes.data.loader import Batch
from fourminutes.errors import Interrupted, RunFailed, UserError
from fourminutes.plan import RunPlan
from fourminutes.record import RunRecord, read_record
from fourminutes.train import train
from fourminutes.train.accounting import StepClock
from fourminutes.train.checkpoint import BEST, FINAL, SHARED
from fourminutes.train.course import Course
from fourminutes.train.evaluate import evaluate, image_scores
from fourminutes.train.loss_scale import LossScale
from fourminutes.train.precision import settle_arithmetic
from fourminutes.train.ranks import Ranks
from fourminutes.train.requirements import in_words
from fourminutes.train.run import parameter_checksum
from fourminutes.train.step import accumulate_gradients

ALONE = Ranks(rank=0, world_size=1, group=None)
# Commands are this interpreter's, whether or not its environment is activated.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("train")) as made:
        yield made


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
    assert {path.name for path in home.iterdir()} == {BEST, FINAL, "record.json"}
    assert read_record(home / "record.json", RunRecord) == undisturbed
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
    assert f"{newest}: is damaged" in record.sessions[-1].note
    assert record.sessions[-1].from_step == 6
    assert record.parameter_checksum == undisturbed.parameter_checksum


def test_another_recipe_does_not_go_on_from_this_ones_checkpoint(bench):
    with signal_after_step(MIDDLE, signal.SIGTERM), pytest.raises(Interrupted):
        train(bench.plan("recipe"), "run")
    record = train(bench.plan("recipe", label_smoothing=0.0), "run")
    assert [session.from_step for session in record.sessions] == [0]


def test_a_loss_that_stays_no_number_ends_the_run(bench):
    changes = {"optimizer": {"kind": "sgd"}, "schedule": {"base_rate": 1e30}, "max_skipped_steps": 3}
    plan = bench.plan("diverged", **changes)
    with pytest.raises(
        RunFailed, match=r"diverged: after batch 4 gradients are no finite numbers, 3 skipped .*; lower"
    ):
        train(plan, "run")
    assert not plan.run_record("run").exists()


def test_weights_that_end_as_no_numbers_are_no_finished_run(bench, request):
    """Too late for a loss to show it: in the last step."""

    def spoil(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if next(left, None) == 0:
            optimizer.param_groups[0]["params"][0].data[0] = torch.inf

    plan, left = bench.plan("spoiled"), iter(range(STEPS - 1, -1, -1))
    request.addfinalizer(register_optimizer_step_post_hook(spoil).remove)
    with pytest.raises(RunFailed, match=f"after batch {STEPS} weights are no finite numbers"):
        train(plan, "run")
    assert not plan.run_record("run").exists()
    assert list(Path("work/spoiled").glob("*/step-*"))
    assert not list(Path("work/spoiled").glob(f"*/{FINAL}"))


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


def test_a_log_that_cannot_be_written_is_one_line_on_every_rank(bench):
    """Only rank 0 writes it; the others must not wait for a rank that is gone."""
    plan = bench.plan("no-log", processes=2)
    Path("logs/no-log").mkdir(parents=True)
    Path("logs/no-log/tensorboard").write_text("in the way")
    statuses, stderr = launch(bench, plan)
    assert statuses == [2, 2]
    assert "logs/no-log/tensorboard/run: cannot be written" in stderr
    assert "Traceback" not in stderr


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
    statuses, stderr = launch(bench, stopped, {1: partial(signal_after_step, MIDDLE, signal.SIGTERM)})
    assert statuses == [75, 75], stderr
    # The other hears of it one step later.
    assert f"checkpoint at step {MIDDLE + 1}; run the same command to go on" in stderr
    assert launch(bench, stopped)[0] == [0, 0]
    assert record_of(stopped).parameter_checksum == record.parameter_checksum
    assert [epoch.val_loss for epoch in record_of(stopped).epochs] == [epoch.val_loss for epoch in record.epochs]


@pytest.mark.parametrize("front_end", ["ddp", "flat"])
def test_the_traced_step_shows_every_bucket_on_every_rank_in_one_order(bench, front_end):
    reduce = {"algorithm": "hierarchical", "group_ranks": 2, "wire": "fp16", "bucket_mib": 0.004, "trace_step": 3}
    plan = bench.plan(f"traced-{front_end}", processes=4, reduce=reduce | {"front_end": front_end})
    assert launch(bench, plan)[0] == [0] * 4
    trace = json.loads(Path(f"logs/{plan.name}/trace/run.json").read_text())
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    buckets = {span["tid"] for span in spans}
    assert len(buckets) > 2
    stages = {
        rank: [(s["tid"], s["name"]) for s in spans if s["pid"] == rank and "," in s["name"]] for rank in range(4)
    }
    for rank, made in stages.items():
        # Rank 0 and 2 are the masters of their pairs.
        names = ["reduce, within", "all_reduce, across", "broadcast, within"][:: 1 if rank % 2 == 0 else 2]
        assert made == [(bucket, name) for bucket in sorted(buckets) for name in names]
    assert all(0 <= one["exposed_s"] <= one["busy_s"] for one in trace["otherData"]["overlap_by_rank"])
    assert trace["otherData"]["reduce"]["front_end"] == front_end

    reduction = record_of(plan).reduction
    assert reduction is not None
    assert reduction.traced is not None
    own = [event for event in spans if event["pid"] == 0]
    assert [(span.bucket, span.name) for span in reduction.traced.spans] == [(one["tid"], one["name"]) for one in own]
    assert len(reduction.buckets) == 1 + max(one["tid"] for one in own)
    assert reduction.traced.step == 3
    assert [len(reduction.traced.busy_s), len(reduction.traced.exposed_s)] == [4, 4]


def test_recalibration_on_more_pictures_than_there_are_makes_as_many_passes_on_every_rank(bench):
    """A rank's share of 92 pictures is 30 or 31: some would have a batch more, and a shared norm would hang."""
    batch = {"global_batch": 15, "per_device": 5, "bn_span": 3}
    plan = bench.plan("recalibrated", processes=3, batch=batch, evaluation={"recalibration_images": 1000})
    statuses, stderr = launch(bench, plan)
    assert statuses == [0] * 3, stderr
    assert record_of(plan).placement.bn_images == 15


def test_a_diverged_run_leaves_the_last_checkpoint_that_is_sound(bench):
    """From step 2 on no loss is a number: checkpoints stop there, and nothing is trained with it."""
    changes = {"optimizer": {"kind": "sgd"}, "schedule": {"base_rate": 1e30}, "checkpoint": {"every_steps": 1}}
    plan = bench.plan("diverged-2", processes=2, max_skipped_steps=3, **changes)
    statuses, stderr = launch(bench, plan)
    assert statuses == [1, 1]
    assert "the run diverged: after batch 4 gradients are no finite numbers" in stderr
    (home,) = Path("work/diverged-2").glob("*/step-*")
    assert home.name == "step-00000001"
    weights = torch.load(home / SHARED, weights_only=True)["model"].values()
    assert all(bool(weight.isfinite().all()) for weight in weights)


# --- the arithmetic -------------------------------------------------------------------------------------------------


def test_a_gpu_that_is_too_small_is_one_line():
    settings = RunPlan.model_validate({"batch": {"global_batch": 64, "per_device": 64}})
    too_large = r"run 'a': batch\.per_device 64: more than the GPU's memory holds; lower it"
    with pytest.raises(UserError, match=too_large), in_words("run 'a'", settings):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_fp32_is_never_tf32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    settle_arithmetic()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def parts_of(model: nn.Module, micro_batches: int) -> Any:
    """As much of the parts as the gradient needs."""
    settings = RunPlan.model_validate({"batch": {"global_batch": 8, "per_device": 8 // micro_batches}})
    return SimpleNamespace(
        settings=settings, parallel=model, loss_scale=LossScale.of(settings), without_reduce=nullcontext
    )


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
        assert (
            min(spent_s[part] for part in ("other", "input_wait", "forward", "backward")) > 0
        )  # what came before is no wait
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, accumulated, rtol=1e-5, atol=1e-7)


def test_scores_of_a_batch_by_hand():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4]] * 3)
    losses, places = image_scores(logits, torch.tensor([0, 4, 5]))
    assert places.tolist() == [0, 4, 5]
    log_sum = torch.logsumexp(logits[0].double(), 0).item()
    assert losses.tolist() == pytest.approx([log_sum - 9, log_sum - 5, log_sum - 4])


def test_of_equal_logits_the_lower_class_comes_first_and_no_number_comes_last():
    logits = torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, torch.nan, 0]])
    assert image_scores(logits, torch.tensor([0, 2, 0]))[1].tolist() == [0, 2, 3]


def test_evaluation_passes_over_empty_batches_and_refuses_a_wrong_count():
    empty = Batch(torch.zeros(0, 3, 1, 1), torch.zeros(0, dtype=torch.int64))
    batches = [Batch(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])), empty]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    evaluation = evaluate(model, batches, ALONE, expected=2)
    assert evaluation.images == len(evaluation.hits) == 2
    assert evaluation.top1_percent == 50  # one of two labels, whichever the model prefers
    assert evaluation.top5_percent == 100  # of two classes, both are among the first five
    with pytest.raises(RunFailed, match="2 images were seen where the manifest has 3"):
        evaluate(model, batches, ALONE, expected=3)

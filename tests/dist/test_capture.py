"""A recorded step against the same step launched one by one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.tape import Tape
from training import RUN, Bench, made_bench

from fourminutes.comm.launch import ALONE
from fourminutes.comm.topology import discover
from fourminutes.data.loader import LoaderState
from fourminutes.errors import UserError
from fourminutes.plan import RunPlan
from fourminutes.train.capture import CapturedStep
from fourminutes.train.checkpoint import Saved
from fourminutes.train.course import Course, begin, own_state, resume, shared_state
from fourminutes.train.loop import take_step
from fourminutes.train.ranks import Ranks
from fourminutes.train.requirements import require_fit
from fourminutes.train.setup import Parts, set_up
from fourminutes.train.source import Input, Position
from fourminutes.train.step import Stepper, eager_step

LARS = {"kind": "lars", "weight_decay": 0.01}
MLPERF = LARS | {"variant": "mlperf"}
SGD = {"kind": "sgd", "weight_decay": 0.01}
NESTEROV = SGD | {"nesterov": True}
BAD = 3  # the step whose input is infinite


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    with made_bench(tmp_path_factory.mktemp("capture")) as made:
        yield made


def parts_of(bench: Bench, position: Position = Position(), **changes: Any) -> Parts:  # noqa: B008 - it is frozen
    settings = RunPlan.model_validate(RUN | {"batch": {"global_batch": 16, "per_device": 8}} | changes)
    source = Input(settings, bench.manifest, bench.data_folder, ALONE, torch.device("cpu"))
    parts = set_up(source, discover(ALONE), Ranks.of(ALONE, timeout_s=60), position)
    for group in parts.optimizer.param_groups:
        if settings.optimizer.kind == "lars":
            group["foreach"] = True  # as on a GPU
    return parts


def captured(parts: Parts) -> Stepper:
    return CapturedStep(parts, Tape())


def eager(parts: Parts) -> Stepper:
    return partial(eager_step, parts)


def walked(parts: Parts, course: Course, stepper: Stepper, steps: int, *, bad: int = 0) -> list[Any]:
    """The news of some steps; of number `bad`, pictures are infinite."""
    batches = spoilt(parts, bad)
    return [take_step(parts, course, batches, stepper) for _ in range(steps)]


def spoilt(parts: Parts, bad: int) -> Iterator[Any]:
    for number, batch in enumerate(parts.training.epoch()):
        if number // parts.settings.micro_batches + 1 == bad:
            batch.images[0] = torch.inf
        yield batch


def assert_same(parts: Parts, others: Parts, *, exactly: bool) -> None:
    mine, theirs = parts.model.state_dict(), others.model.state_dict()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0 if exactly else 1e-5, atol=0 if exactly else 1e-6)


@pytest.mark.parametrize("precision", ["fp32", "half", "bf16"])
@pytest.mark.parametrize("optimizer", [LARS, MLPERF, SGD, NESTEROV], ids=["lars", "mlperf", "sgd", "nesterov"])
def test_a_recorded_run_is_that_of_steps_launched_one_by_one(bench, optimizer, precision):
    """Rate, loss scale and batches change from step to step, and an overflow skips one."""
    results = []
    for form in (eager, captured):
        changes = {"optimizer": optimizer, "precision": precision, "loss_scale": {"initial": 256.0, "growth_steps": 2}}
        parts = parts_of(bench, **changes)
        course = begin(parts)
        news = walked(parts, course, form(parts), 5, bad=BAD)
        results.append((parts, course, news))
    (ours, our_course, our_news), (theirs, their_course, their_news) = results
    assert [one.skipped for one in our_news] == [number == BAD for number in range(1, 6)]
    for one, other in zip(our_news, their_news, strict=True):
        assert (one.step, one.rate, one.loss_scale, one.skipped) == (
            other.step, other.rate, other.loss_scale, other.skipped,
        )  # fmt: skip
        assert one.skipped or one.loss == pytest.approx(other.loss, rel=1e-6)
    assert len({one.rate for one in our_news}) > 3
    if precision == "half":
        assert our_course.flushed == pytest.approx(their_course.flushed, rel=1e-3)
    # MLPerf's momentum is reckoned in float64 from rates on the host; SGD's fused form rounds less often.
    assert_same(ours, theirs, exactly=optimizer == LARS)


def test_with_one_micro_batch_no_gradient_is_added_to_another(bench):
    """Each is where autograd left it at the recording, and is right at every repetition."""
    runs = []
    for form in (eager, captured):
        parts = parts_of(bench, batch={"global_batch": 16, "per_device": 16})
        walked(parts, begin(parts), form(parts), 4, bad=2)
        runs.append(parts)
    assert_same(*runs, exactly=True)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_bn"])
@pytest.mark.parametrize("precision", ["fp32", "half"])
def test_dropout_and_a_network_without_batch_norm(bench, name, precision):
    model = {"name": name, "width": 0.03, "image_px": 31}
    weights = []
    for form in (eager, captured):
        parts = parts_of(bench, model=model, precision=precision, loss_scale={"initial": 256.0})
        news = walked(parts, begin(parts), form(parts), 4, bad=BAD)
        assert [one.skipped for one in news] == [number == BAD for number in range(1, 5)]
        weights.append(parts)
    assert_same(*weights, exactly=True)


def test_recording_leaves_weights_statistics_momentum_and_random_numbers_as_they_were(bench):
    parts = parts_of(bench)
    walked(parts, begin(parts), eager(parts), 2)
    momentum = [state["momentum_buffer"] for state in parts.optimizer.state.values()]
    before = [tensor.clone() for tensor in (*parts.model.state_dict().values(), *momentum)]
    assert any(tensor.any() for tensor in before[-len(momentum) :])
    random = torch.get_rng_state()
    captured(parts)
    after = [*parts.model.state_dict().values(), *momentum]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("optimizer", [MLPERF, SGD], ids=["mlperf", "sgd"])
def test_a_recorded_run_goes_on_from_a_checkpoint_bit_for_bit(bench, tmp_path, optimizer):
    whole = parts_of(bench, optimizer=optimizer)
    walked(whole, begin(whole), captured(whole), 5)
    first = parts_of(bench, optimizer=optimizer)
    course = begin(first)
    walked(first, course, captured(first), 2)
    torch.save([shared_state(first, course, by_signal=15), own_state(first, course)], tmp_path / "saved")
    shared, own = torch.load(tmp_path / "saved", weights_only=True)
    second = parts_of(bench, Position(state=LoaderState.from_dict(own["loader"])), optimizer=optimizer)
    course = resume(second, Saved(shared, own, world_size=1, at_epoch_end=False, step=2))
    walked(second, course, captured(second), 3)
    assert_same(second, whole, exactly=True)


def test_more_than_one_process_is_refused_by_the_plan():
    with pytest.raises(ValueError, match="cuda_graph: only for processes 1, not 2; set it to false"):
        RunPlan.model_validate(RUN | {"cuda_graph": True, "processes": 2})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(bench):
    settings = RunPlan.model_validate(RUN | {"cuda_graph": True})
    with pytest.raises(UserError, match="run 'run': cuda_graph: there is no GPU here; set it to false"):
        require_fit("run 'run'", settings, bench.manifest, ALONE)

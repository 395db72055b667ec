"""A step as CUDA graphs is the step that is launched kernel by kernel."""

import pytest
import torch
from drawn import bits, captured, differing, eager, parts_of, settings_of, walked

from fourminutes.data.loader import LoaderState
from fourminutes.train.checkpoint import Saved
from fourminutes.train.course import begin, own_state, resume, shared_state
from fourminutes.train.loop import stepper_of
from fourminutes.train.source import Position

STEPS, BAD = 24, 5  # of which number BAD has an infinite picture
OPTIMIZERS = {
    "lars": {"kind": "lars", "weight_decay": 0.01},
    "mlperf": {"kind": "lars", "weight_decay": 0.01, "variant": "mlperf"},
    "sgd": {"kind": "sgd", "weight_decay": 0.01, "nesterov": True},
}
compiles = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch's own making


def both(gpu, steps=STEPS, **changes):
    """Parts and news of the run step by step, and of the recorded one."""
    results = []
    for form in (eager, captured):
        parts = parts_of(gpu, **changes)
        course = begin(parts)
        results.append((parts, walked(parts, course, form(parts), steps, bad=BAD)))
    return results


def assert_same(one, other, *, exactly):
    (parts, news), (other_parts, other_news) = one, other
    assert [each.skipped for each in news] == [number == BAD for number in range(1, len(news) + 1)]
    for mine, theirs in zip(news, other_news, strict=True):
        assert (mine.step, mine.rate, mine.loss_scale, mine.skipped) == (
            theirs.step, theirs.rate, theirs.loss_scale, theirs.skipped,
        )  # fmt: skip
        assert mine.skipped or mine.loss == pytest.approx(theirs.loss, rel=1e-6 if exactly else 1e-2)
    assert len({each.rate for each in news}) > STEPS // 2
    if exactly:
        assert not differing(bits(parts), bits(other_parts))
    for name, tensor in bits(parts).items():
        torch.testing.assert_close(tensor, bits(other_parts)[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["half", "amp", "fp32"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_losses_and_weights_are_those_of_kernels_launched_one_by_one(gpu, optimizer, precision):
    """Bit for bit with the paper's LARS; the others' recorded forms round elsewhere."""
    changes = {"precision": precision, "optimizer": OPTIMIZERS[optimizer]}
    if precision == "fp32":
        changes["max_skipped_steps"] = 2
    assert_same(*both(gpu, **changes), exactly=optimizer == "lars")


@compiles
@pytest.mark.parametrize("precision", ["half", "amp"])
def test_compiled_too(gpu, precision):
    """And the compiler takes the whole network, casts included, in one."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same(*both(gpu, precision=precision, compile=True), exactly=True)
    assert not torch._dynamo.utils.counters["graph_break"]


@compiles
def test_compiled_is_near_what_is_not(gpu):
    torch._dynamo.reset()
    losses = []
    for compiled in (False, True):
        parts = parts_of(gpu, compile=compiled)
        losses.append([each.loss for each in walked(parts, begin(parts), eager(parts), 4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[1] != losses[0]  # else nothing was compiled


def test_micro_batches_add_up(gpu):
    assert_same(*both(gpu, batch={"global_batch": 64, "per_device": 16}), exactly=True)


def test_dropout_draws_anew_in_every_repetition(gpu):
    parts = parts_of(gpu, model={"name": "alexnet", "width": 0.1, "image_px": 64}, schedule={"base_rate": 1e-12})
    stepper, course = captured(parts), begin(parts)
    same = next(parts.training.epoch())
    losses = {stepper(course, iter([same])).loss for _ in range(5)}
    assert len(losses) == 5


def test_recording_leaves_weights_momentum_and_random_numbers_as_they_were(gpu):
    parts = parts_of(gpu)
    walked(parts, begin(parts), eager(parts), 3)
    before, random, cpu_random = bits(parts), torch.cuda.get_rng_state(gpu), torch.get_rng_state()
    captured(parts)
    assert not differing(bits(parts), before)
    assert torch.equal(random, torch.cuda.get_rng_state(gpu))
    assert torch.equal(cpu_random, torch.get_rng_state())


def test_a_recorded_run_goes_on_from_a_checkpoint_bit_for_bit(gpu, tmp_path):
    whole = parts_of(gpu)
    walked(whole, begin(whole), captured(whole), 10)
    first = parts_of(gpu)
    course = begin(first)
    walked(first, course, captured(first), 6)
    torch.save([shared_state(first, course, by_signal=15), own_state(first, course)], tmp_path / "saved")
    shared, own = torch.load(tmp_path / "saved", map_location="cpu", weights_only=True)
    second = parts_of(gpu, Position(state=LoaderState.from_dict(own["loader"])))
    course = resume(second, Saved(shared, own, world_size=1, at_epoch_end=False, step=6))
    walked(second, course, captured(second), 4)
    assert not differing(bits(second), bits(whole))


def test_the_plan_asks_for_it(gpu):
    parts = parts_of(gpu, cuda_graph=True)
    assert settings_of(cuda_graph=True).cuda_graph
    assert type(stepper_of(parts)).__name__ == "CapturedStep"

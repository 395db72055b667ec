"""Copies for a checkpoint, into page-locked memory, and a run that goes on from one."""

import torch
from drawn import bits, differing, eager, parts_of, walked

from fourminutes.comm.launch import ALONE
from fourminutes.data.loader import LoaderState
from fourminutes.train.accounting import PARTS
from fourminutes.train.checkpoint import load_newest
from fourminutes.train.course import begin, own_state, resume, shared_state
from fourminutes.train.ranks import Ranks
from fourminutes.train.snapshot import Snapshots
from fourminutes.train.source import Position
from fourminutes.train.writer import CheckpointWriter

STEPS, MIDDLE = 12, 7


def test_a_snapshot_is_whole_although_training_goes_on_at_once(gpu):
    weight = torch.arange(2.0**24, device=gpu).view(64, 512, 512).permute(0, 2, 1)
    part, on_cpu, expected = weight[3:5], torch.arange(4.0), weight.cpu().clone()
    snapshots = Snapshots()
    for turn in range(3):
        torch.cuda._sleep(50_000_000)  # what computes the weight may still be under way
        weight.add_(1.0)
        taken = snapshots.take({"weight": weight, "more": [part, (on_cpu, 3, "text")]})
        weight.mul_(-1.0)  # the next step
        assert taken["weight"].is_pinned()
        assert taken["weight"].stride() == weight.stride()
        assert torch.equal(taken["weight"], expected + 1)
        assert torch.equal(taken["more"][0], expected[3:5] + 1)
        assert torch.equal(taken["more"][1][0], on_cpu)
        weight.mul_(-1.0).sub_(1.0)
        assert torch.equal(weight.cpu(), expected), turn


def test_a_run_goes_on_from_a_written_checkpoint_bit_for_bit(gpu, tmp_path):
    """Training does not wait while it is written, and what is written is what was at the step."""
    ranks = Ranks.of(ALONE, timeout_s=60)
    whole = parts_of(gpu)
    walked(whole, begin(whole), eager(whole), STEPS)

    first = parts_of(gpu)
    course, writer = begin(first), CheckpointWriter(tmp_path, ranks, keep=2)
    walked(first, course, eager(first), MIDDLE)
    writer.save(
        course.batch,
        shared=shared_state(first, course, by_signal=None),
        own=own_state(first, course),
        at_epoch_end=False,
        is_best=False,
    )
    walked(first, course, eager(first), STEPS - MIDDLE)
    writer.wait()
    assert not differing(bits(first), bits(whole))

    saved = load_newest(tmp_path, ranks)
    assert saved is not None
    assert saved.own is not None
    second = parts_of(gpu, Position(state=LoaderState.from_dict(saved.own["loader"])))
    course = resume(second, saved)
    assert course.step == MIDDLE
    assert second.loss_scale.value == 512.0  # it has doubled after 7 steps, and starts at 256
    walked(second, course, eager(second), STEPS - MIDDLE)
    assert not differing(bits(second), bits(whole))


def test_the_clock_divides_the_devices_time_without_a_gap(gpu):
    parts = parts_of(gpu)
    course = begin(parts)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    course.clock.pass_over()
    walked(parts, course, eager(parts), 5)
    end.record()
    spent = course.clock.spent_s()
    assert min(spent[part] for part in ("forward", "backward", "optimizer")) > 0
    assert sum(spent[part] for part in PARTS) <= start.elapsed_time(end) / 1e3
    again = course.clock.take()
    assert again.total_s == sum(spent.values())
    assert course.clock.take().total_s == 0

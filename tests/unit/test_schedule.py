"""The learning rate over the epochs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourminutes.optim import LARS, rate_at, set_rate, step_rate
from fourminutes.plan import BatchPlan, RunPlan, SchedulePlan

MLPERF_64K = SchedulePlan(base_rate=24.699, warmup_epochs=31, power=2, end_rate=1e-4)

schedules = st.builds(
    SchedulePlan,
    base_rate=st.floats(0.01, 50),
    warmup_epochs=st.floats(0, 30),
    warmup_rate=st.floats(0, 5),
    decay=st.sampled_from(["polynomial", "cosine", "constant"]),
    power=st.floats(1, 3),
    end_rate=st.floats(0, 0.01),
)
falling = schedules | st.builds(
    SchedulePlan,
    base_rate=st.floats(0.01, 50),
    decay=st.just("multistep"),
    milestones=st.lists(st.floats(0, 40), min_size=1, unique=True).map(sorted).map(tuple),
    milestone_factor=st.floats(0.05, 0.95),
)


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.0),
        (15.5, 24.699 / 2),
        (31, 24.699),
        (31 + 59 / 2, 1e-4 + (24.699 - 1e-4) / 4),  # half-way down: a quarter is left of a square
        (90, 1e-4),
        (91, 1e-4),
    ],
)
def test_polynomial_of_the_mlperf_64k_recipe(epoch, rate):
    assert rate_at(MLPERF_64K, epoch, 90) == pytest.approx(rate)


def test_cosine_passes_the_middle_at_half_time():
    schedule = SchedulePlan(base_rate=2.0, warmup_epochs=10, decay="cosine", end_rate=0.5)
    assert rate_at(schedule, 10, 50) == pytest.approx(2.0)
    assert rate_at(schedule, 30, 50) == pytest.approx(1.25)
    assert rate_at(schedule, 50, 50) == pytest.approx(0.5)


def test_constant_keeps_the_base_rate_to_the_end():
    schedule = SchedulePlan(base_rate=0.3, warmup_epochs=1, decay="constant", end_rate=0.1)
    assert [rate_at(schedule, epoch, 4) for epoch in (1, 2.5, 4)] == [0.3, 0.3, 0.3]


def test_warmup_is_linear_from_its_own_rate():
    schedule = SchedulePlan(base_rate=32, warmup_epochs=10, warmup_rate=1)
    rates = [rate_at(schedule, epoch, 100) for epoch in range(11)]
    assert rates[0] == 1
    assert rates[10] == 32
    assert [after - before for before, after in pairwise(rates)] == pytest.approx([3.1] * 10)


def test_without_warmup_the_first_step_has_the_base_rate():
    assert rate_at(SchedulePlan(base_rate=0.1), 0, 5) == 0.1


def test_multistep_falls_at_each_milestone_and_not_before():
    schedule = SchedulePlan(
        base_rate=3.2,
        warmup_epochs=5,
        warmup_rate=0.1,
        decay="multistep",
        milestones=(30, 60, 80),
        milestone_factor=0.1,
    )
    expected = {0: 0.1, 5: 3.2, 29.999: 3.2, 30: 0.32, 59.999: 0.32, 60: 0.032, 80: 0.0032, 90: 0.0032}
    assert {epoch: rate_at(schedule, epoch, 90) for epoch in expected} == pytest.approx(expected)


@pytest.mark.parametrize("steps_per_epoch", [7, 1251])
def test_the_first_step_after_a_milestone_has_the_lower_rate_and_the_last_before_it_the_higher(steps_per_epoch):
    schedule = SchedulePlan(base_rate=1, decay="multistep", milestones=(2,))
    before, after = (
        step_rate(schedule, step, steps_per_epoch=steps_per_epoch, epochs=3)
        for step in (2 * steps_per_epoch, 2 * steps_per_epoch + 1)
    )
    assert (before, after) == pytest.approx((1, 0.1))


@pytest.mark.parametrize("decay", ["polynomial", "cosine"])
@pytest.mark.parametrize("steps_per_epoch", [7, 1251])
def test_every_step_moves_the_first_of_a_warmup_from_0_and_the_last_of_a_decay_to_0_too(decay, steps_per_epoch):
    schedule = SchedulePlan(base_rate=29.0, warmup_epochs=3, decay=decay)
    rates = [
        step_rate(schedule, step + 1, steps_per_epoch=steps_per_epoch, epochs=11)
        for step in range(11 * steps_per_epoch)
    ]
    assert min(rates) > 0
    assert rates[0] == pytest.approx(29.0 / (3 * steps_per_epoch) / 2)
    assert max(rates) < 29.0
    assert rates.index(max(rates)) in (3 * steps_per_epoch - 1, 3 * steps_per_epoch)


@pytest.mark.parametrize("steps_per_epoch", [1, 19, 313])
def test_the_rates_of_a_straight_stretch_add_up_to_its_area_however_many_steps_there_are(steps_per_epoch):
    schedule = SchedulePlan(base_rate=24.0, warmup_epochs=30, power=1, end_rate=2)
    rates = [
        step_rate(schedule, step + 1, steps_per_epoch=steps_per_epoch, epochs=90)
        for step in range(90 * steps_per_epoch)
    ]
    assert sum(rates) / steps_per_epoch == pytest.approx(30 * 24 / 2 + 60 * (24 + 2) / 2)


def test_a_rate_that_is_meant_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="`rates`"):
        rate_at(SchedulePlan(base_batch=256), 0, 5)


def test_the_linear_scaling_rule_gives_the_rate_of_the_global_batch():
    run = RunPlan(
        schedule=SchedulePlan(base_rate=0.1, base_batch=256, warmup_epochs=5, warmup_rate=0.1),
        batch=BatchPlan(global_batch=8192, per_device=32),
    )
    assert step_rate(run.rates, 5 * 156 + 1, steps_per_epoch=156, epochs=90) == pytest.approx(3.2, rel=1e-3)
    assert rate_at(run.rates, 5, 90) == pytest.approx(3.2)
    assert rate_at(run.rates, 0, 90) == 0.1  # a warm-up's own rate stays as it is


@given(schedule=schedules)
def test_warmup_meets_the_decay(schedule):
    peak = schedule.warmup_epochs
    before, after = rate_at(schedule, max(peak - 1e-9, 0), 40), rate_at(schedule, peak + 1e-9, 40)
    assert after == pytest.approx(schedule.base_rate, rel=1e-6)
    if peak > 1e-3:
        assert before == pytest.approx(after, rel=1e-4, abs=1e-4)


@given(schedule=schedules, epoch=st.floats(0, 40))
def test_rate_stays_between_the_rates_of_the_plan(schedule, epoch):
    rates = (schedule.base_rate, schedule.warmup_rate, schedule.end_rate)
    assert min(rates) - 1e-12 <= rate_at(schedule, epoch, 40) <= max(rates) + 1e-12


@given(schedule=falling, epochs=st.lists(st.floats(30, 40), min_size=2, max_size=2).map(sorted))
def test_rate_never_rises_after_the_warmup(schedule, epochs):
    earlier, later = (rate_at(schedule, epoch, 40) for epoch in epochs)
    assert later <= earlier + 1e-12


def test_set_rate_reaches_every_group():
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))]}, {"params": [torch.nn.Parameter(torch.ones(3))]}]
    optimizer = LARS(groups, lr=0.1)
    set_rate(optimizer, 0.7)
    assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.7]


def test_set_rate_changes_a_tensor_where_it_is():
    """A captured step reads the rate at the address that it was captured with."""
    rate = torch.tensor(0.1)
    optimizer = LARS([torch.nn.Parameter(torch.ones(2))], lr=rate)
    set_rate(optimizer, 0.7)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.7)

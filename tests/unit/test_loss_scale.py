"""The loss scale: what it does to gradients, how it finds overflows, and how it follows them."""

import itertools

import pytest
import torch

from fourminutes.plan import RunPlan
from fourminutes.train.loss_scale import LARGEST, LossScale


def run_plan(precision: str, **loss_scale: object) -> RunPlan:
    return RunPlan.model_validate({"precision": precision, "loss_scale": loss_scale})


def followed(scale: LossScale, finite: str) -> list[float]:
    """The values after each step; `finite` has a + for each good step and a - for each overflow."""
    values = []
    for sign in finite:
        scale.update(sign == "+")
        values.append(scale.value)
    return values


def test_dynamic_scale_halves_at_overflows_and_doubles_after_enough_good_steps_in_a_row() -> None:
    scale = LossScale(1024, dynamic=True, growth_steps=3)
    assert followed(scale, "++-+++++++") == [1024, 1024, 512, 512, 512, 1024, 1024, 1024, 2048, 2048]


def test_dynamic_scale_stays_within_its_bounds() -> None:
    assert followed(LossScale(4, dynamic=True), "----") == [2, 1, 1, 1]
    assert followed(LossScale(0.5, dynamic=True, growth_steps=1), "-+") == [0.5, 1]
    assert followed(LossScale(LARGEST / 2, dynamic=True, growth_steps=1), "+++") == [LARGEST] * 3
    assert followed(LossScale(LARGEST * 2, dynamic=True, growth_steps=1), "+-+") == [LARGEST * 2, LARGEST, LARGEST]


def test_static_scale_never_changes() -> None:
    assert followed(LossScale(1000, growth_steps=1), "+-++-") == [1000] * 5


def test_skips_are_counted_in_a_row() -> None:
    scale, counts = LossScale(dynamic=True), []
    for sign in "--+-":
        followed(scale, sign)
        counts.append(scale.consecutive_skips)
    assert counts == [1, 2, 0, 1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_scale_where_gradients_are_never_fp16(precision: str) -> None:
    scale = LossScale.of(run_plan(precision, initial=64, growth_steps=1))
    assert followed(scale, "+-") == [1, 1]


@pytest.mark.parametrize("precision", ["amp", "half", "half-lars"])
def test_scale_of_the_plan_where_gradients_are_fp16(precision: str) -> None:
    assert LossScale.of(run_plan(precision)).value == 32_768
    assert followed(LossScale.of(run_plan(precision, initial=64, growth_steps=1)), "+-") == [128, 64]
    assert followed(LossScale.of(run_plan(precision, initial=64, growth_steps=1, dynamic=False)), "+-") == [64, 64]


def test_run_goes_on_from_its_state() -> None:
    scale = LossScale(1000, dynamic=True, growth_steps=3)
    followed(scale, "-++")
    restored = LossScale(1000, dynamic=True, growth_steps=3)
    restored.restore(scale.state())
    assert restored.state() == scale.state()
    assert all(type(value) in (int, float) for value in scale.state().values())
    assert followed(restored, "+--+") == followed(scale, "+--+") == [1000, 500, 250, 250]
    assert restored.state() == scale.state()


@pytest.mark.parametrize("value", [1024.0, 1000.0])
def test_scaling_and_unscaling_give_the_gradient(value: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, requires_grad=True)
    plain = torch.autograd.grad(weight.square().sum(), weight)[0]
    scale = LossScale(value)
    loss = scale.scaled(weight.square().sum())
    loss.backward()
    assert loss.item() == pytest.approx(value * weight.square().sum().item())
    assert scale.unscale_([weight.grad])
    # A power of two is exact; else there is one rounding of the factor and one of each product.
    torch.testing.assert_close(weight.grad, plain, rtol=0 if value == 1024 else 3e-7, atol=0)


SHAPES = ((3,), (64, 3, 7, 7), (1000, 33), (1,))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_bad_number_is_found_anywhere(dtype: torch.dtype, bad: float) -> None:
    for tensor, place in itertools.product(range(len(SHAPES)), (0, -1)):
        gradients = [torch.ones(shape, dtype=dtype) for shape in SHAPES]
        gradients[1] = gradients[1].to(memory_format=torch.channels_last)
        assert LossScale(2).unscale_(gradients)
        assert all(torch.equal(gradient, torch.full_like(gradient, 0.5)) for gradient in gradients)
        gradients[tensor][(place,) * len(SHAPES[tensor])] = bad
        assert not LossScale(2).unscale_(gradients)
        assert not LossScale().unscale_(gradients)


def test_fp16_gradients_are_unscaled_in_fp16() -> None:
    """There small ones are flushed, and that is what masters in fp32 are for."""
    gradients = [torch.tensor([2.0**-12, 1.0]).to(dtype) for dtype in (torch.float32, torch.float16)]
    for gradient in gradients:
        assert LossScale(2.0**15).unscale_([gradient])
    assert gradients[0].tolist() == [2.0**-27, 2.0**-15]
    assert gradients[1].tolist() == [0, 2.0**-15]
    assert gradients[1].dtype == torch.float16


def test_no_gradients_are_finite() -> None:
    assert LossScale(2).unscale_([])
    assert LossScale(2).unscale_(iter([torch.empty(0)]))

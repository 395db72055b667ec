"""The factor on the loss that lifts small gradients into the range of fp16."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fourminutes.plan import RunPlan
from fourminutes.train.precision import uses_loss_scale

SMALLEST = 1.0
LARGEST = 2.0**24

State = dict[str, float | int]


class LossScale:
    """The loss scale S, static or dynamic, and the steps that were skipped for it.

    The backward pass starts from S·loss, so every gradient is S times itself until `unscale_` divides it. An fp16
    gradient beyond 65,504 becomes infinite: then the step is skipped (Micikevicius et al. 2017, arXiv:1710.03740,
    section 3.2). A dynamic S halves at an overflow and doubles after `growth_steps` steps in a row without, between 1
    and 2²⁴. While S is a power of two, scaling changes no mantissa.

    Torch's `GradScaler` has no static form and refuses fp16 parameters. One step with this one::

        scale.scaled(loss).backward()
        finite = scale.unscale_(parameter.grad for parameter in model.parameters())
        if finite:
            optimizer.step()
        scale.update(finite)

    Args:
        initial: S at the start, above 0.
        dynamic: whether S follows the overflows.
        growth_steps: steps without an overflow before S doubles.
        device: where losses and gradients are. S is kept there too, always at the same place, so that a step recorded
            in a CUDA graph follows it.

    Attributes:
        consecutive_skips: overflows since the last step without one.
    """

    def __init__(
        self,
        initial: float = 1.0,
        *,
        dynamic: bool = False,
        growth_steps: int = 2000,
        device: torch.device | str = "cpu",
    ) -> None:
        self.consecutive_skips = 0
        self._value = float(initial)
        self._factor = torch.full((1,), self._value, device=device)
        self._good_steps = 0  # since S changed or a step was skipped
        self._dynamic = dynamic
        self._growth_steps = growth_steps

    @classmethod
    def of(cls, settings: RunPlan, device: torch.device | str = "cpu") -> LossScale:
        """The scale of a run: its plan's where gradients pass through fp16, else 1 for good."""
        if not uses_loss_scale(settings.precision):
            return cls(device=device)
        plan = settings.loss_scale
        return cls(plan.initial, dynamic=plan.dynamic, growth_steps=plan.growth_steps, device=device)

    @property
    def value(self) -> float:
        """S."""
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        self._value = value
        self._factor.fill_(value)

    def scaled(self, loss: Tensor) -> Tensor:
        """S·loss, of the loss's type and shape ()."""
        return loss * self._factor[0]

    def unscale_(self, gradients: Iterable[Tensor]) -> bool:
        """Divide the gradients by S where they are; returns whether all of them are finite.

        Each stays in its type; all have one type and one device. Takes one pass over the memory, and on a GPU one wait
        for the device. To be given the gradients that are averaged over the ranks: those have the same bits everywhere,
        so that every rank comes to the same answer by itself.
        """
        return not self.overflow_of_unscaled_(gradients).item()

    def overflow_of_unscaled_(self, gradients: Iterable[Tensor]) -> Tensor:
        """As `unscale_`, without the wait: float32 of shape (1,), 1 where a gradient is not finite and 0 elsewhere."""
        overflow = torch.zeros_like(self._factor)
        if tensors := list(gradients):
            torch._amp_foreach_non_finite_check_and_unscale_(tensors, overflow, self._factor.reciprocal())
        return overflow

    def update(self, finite: bool) -> None:
        """Count a step, and change S where that is due; `finite` is what `unscale_` said."""
        self.consecutive_skips = 0 if finite else self.consecutive_skips + 1
        self._good_steps = self._good_steps + 1 if finite else 0
        if self._dynamic and not finite:
            self.value = max(self.value / 2, min(self.value, SMALLEST))
        elif self._dynamic and self._good_steps == self._growth_steps:
            self.value = min(self.value * 2, max(self.value, LARGEST))
            self._good_steps = 0

    def state(self) -> State:
        """All that changes, as plain numbers."""
        return {"value": self.value, "good_steps": self._good_steps, "consecutive_skips": self.consecutive_skips}

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self.value = float(state["value"])
        self._good_steps = int(state["good_steps"])
        self.consecutive_skips = int(state["consecutive_skips"])

"""Time told apart by step, on a GPU."""

from __future__ import annotations

import pytest
import torch

from fourminutes.train.timeline import Timeline


def test_the_steps_of_a_timeline_add_up_to_what_its_clock_counted() -> None:
    device = torch.device("cuda", 0)
    clock, square = Timeline(device), torch.randn(512, 512, device=device)
    for _ in range(3):
        for part in ("other", "forward", "backward", "optimizer"):
            square = (square @ square).tanh()
            clock.lap(part)
        clock.end_step(exposed_s=0.0)
    steps = clock.steps()
    assert len(steps) == 3
    assert min(step.forward_s for step in steps) > 0
    assert sum(step.total_s for step in steps) == pytest.approx(sum(clock.spent_s().values()))

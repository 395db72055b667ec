"""The update: LARS, plain momentum SGD, which parameters are decayed and adapted, and the rate over the epochs.

Nothing here knows the trainer; ``from fourminutes.optim import LARS, parameter_groups`` serves any model.
"""

from fourminutes.optim.build import build_optimizer
from fourminutes.optim.flush import flushed_share
from fourminutes.optim.groups import parameter_groups, parameter_kind
from fourminutes.optim.lars import LARS
from fourminutes.optim.schedule import rate_at, set_rate, step_rate

__all__ = [
    "LARS",
    "build_optimizer",
    "flushed_share",
    "parameter_groups",
    "parameter_kind",
    "rate_at",
    "set_rate",
    "step_rate",
]

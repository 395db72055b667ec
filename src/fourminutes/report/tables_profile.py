"""Where one device's time goes in a network, and when gradients come."""

from __future__ import annotations

from fourminutes.record import ProfileRecord
from fourminutes.report import words
from fourminutes.report.evidence import Evidence, Sourced
from fourminutes.report.table import Cell, Column, Row, Table, digits, signed
from fourminutes.scale.profile import by_arithmetic, come_percent

_SHARES = (0.1, 0.25, 0.5)
_KINDS = ("conv", "norm", "linear")


def profile_table(evidence: Evidence) -> Table:
    """One row a profile that the plan names."""
    columns = (
        Column("network", "network"),
        Column("device", "device"),
        Column("precision", "precision"),
        Column("images", "images", digits(0)),
        Column("origin", "origin"),
        Column("forward_ms", "forward ms", digits(2)),
        Column("backward_ms", "backward ms", digits(2)),
        Column("backward_low_ms", "from", digits(2)),
        Column("backward_high_ms", "to", digits(2)),
        *(Column(f"{kind}_percent", f"{kind} %", digits(0)) for kind in _KINDS),
        *(Column(_name(share), f"there at {100 * share:g} %", digits(0)) for share in _SHARES),
        Column("later_percent", "later by %", signed(0)),
        Column("slowest", "slowest layer"),
        Column("n", "n", digits(0)),
        Column("record", "record", csv_only=True),
    )
    rows = tuple(Row(_cells(one), anchor=one.anchor) for one in evidence.profiles)
    notes = (
        "Kernels launched one by one. forward: layers with parameters alone; ReLUs, pooling and additions are not in "
        "it, and in the backward pass count with the layer whose gradients come next. from, to: quartiles of the "
        "backward pass; n: passes. conv, norm, linear: share of both. there: parameters whose gradients have come "
        "after that share of the backward pass, in percent, so that their reduction can run beside the rest. later: "
        "than a prediction from multiplications alone supposes, in percent of the pass, a mean over all parameters.",
    )
    return Table("profile", columns, rows, notes, empty="No profile has been recorded yet (fourminutes scale profile).")


def _name(share: float) -> str:
    return f"come_{100 * share:.0f}_percent"


def _cells(one: Sourced[ProfileRecord]) -> dict[str, Cell]:
    record = one.record
    last = max(record.layers, key=lambda layer: layer.ready_s)
    low_s, high_s = last.ready_quartiles_s or (None, None)
    slowest = max(record.layers, key=lambda layer: layer.forward_s + layer.backward_s)
    return {
        "network": words.model_name(record.model),
        "device": record.device,
        "precision": record.precision,
        "images": record.images,
        "origin": record.origin,
        "forward_ms": 1e3 * record.forward_s,
        "backward_ms": 1e3 * record.backward_s,
        "backward_low_ms": None if low_s is None else 1e3 * low_s,
        "backward_high_ms": None if high_s is None else 1e3 * high_s,
        **{f"{kind}_percent": _share(record, kind) for kind in _KINDS},
        **{_name(share): come_percent(record, share) for share in _SHARES},
        "later_percent": later_percent(record),
        "slowest": slowest.name,
        "n": record.passes or None,
        "record": one.path.as_posix(),
    }


def _share(record: ProfileRecord, kind: str) -> float:
    """Percent of both passes that layers of that kind take."""
    both = [(layer.kind, layer.forward_s + layer.backward_s) for layer in record.layers]
    return 100 * sum(seconds for one, seconds in both if one == kind) / sum(seconds for _, seconds in both)


def later_percent(record: ProfileRecord) -> float:
    """How much later gradients come than arithmetic alone supposes, in percent of the backward pass.

    The mean over all parameters; negative where they come earlier.
    """
    pairs = zip(record.layers, by_arithmetic(record).layers, strict=True)
    late = sum(layer.parameters * (layer.ready_s - supposed.ready_s) for layer, supposed in pairs)
    return 100 * late / (record.backward_s * sum(layer.parameters for layer in record.layers))

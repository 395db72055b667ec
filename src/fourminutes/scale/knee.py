"""Where doubling a cluster stops to pay. No torch.

The knee is the first number of devices from which one more doubling makes training less than 1.6 times as fast, so that
a run costs more than 1.25 times the device hours. Where even the largest cluster doubles well, or there can't be more
devices, it is the largest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from fourminutes.scale.answers import Knee, Row

LEAST_SPEEDUP = 1.6
_ONE_NODE = "one node"


def knee_at(devices: Sequence[int], minutes: Sequence[float]) -> int:
    """Index of the knee on a curve of training times by numbers of devices, each twice the one before."""
    for number, (before, after) in enumerate(pairwise(minutes)):
        if before / after < LEAST_SPEEDUP:
            return number
    return len(devices) - 1


def knees_of(rows: Sequence[Row]) -> tuple[Knee, ...]:
    """The knee of every device on every network; a curve begins inside one node."""
    return tuple(_knee(device, network, curve) for (device, network), curve in curves_of(rows).items())


def curves_of(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by device and network, rising in devices; those of one node belong to every network."""
    found: dict[tuple[str, str], list[Row]] = {}
    for device in dict.fromkeys(row.device for row in rows):
        own = [row for row in rows if row.device == device]
        inside = [row for row in own if row.network is None]
        names = dict.fromkeys(row.network for row in own if row.network is not None)
        for network in names:
            found[device, network] = [*inside, *(row for row in own if row.network == network)]
        if not names:
            found[device, _ONE_NODE] = inside
    return found


def _knee(device: str, network: str, curve: Sequence[Row]) -> Knee:
    at = knee_at([row.devices for row in curve], [row.minutes.value for row in curve])
    here, after = curve[at], curve[at + 1] if at + 1 < len(curve) else None
    speedup = here.minutes.value / after.minutes.value if after else None
    return Knee(
        device=device,
        network=network,
        devices=here.devices,
        minutes=here.minutes.value,
        doubled_minutes=after.minutes.value if after else None,
        speedup=speedup,
        cost_factor=2 / speedup if speedup else None,
        why=_why(here, after),
    )


def _why(here: Row, after: Row | None) -> str:
    """What of one more doubling is lost, the largest part first."""
    if after is None:
        return "doubles well up to the largest that was looked at"
    epochs = after.epochs / here.epochs
    efficiency = here.efficiency_percent.value / after.efficiency_percent.value
    alone = (after.images_per_s.value / after.efficiency_percent.value / after.devices) / (
        here.images_per_s.value / here.efficiency_percent.value / here.devices
    )
    parts = [
        (epochs, f"{here.epochs:g} to {after.epochs:g} epochs for a batch of {after.batch:,}"),
        (
            efficiency,
            f"communication and lateness: efficiency {here.efficiency_percent.value:.0f} to "
            f"{after.efficiency_percent.value:.0f} %",
        ),
        (1 / alone, f"{here.per_device} to {after.per_device} images a device"),
    ]
    return ", ".join(words for loss, words in sorted(parts, key=lambda part: -part[0]) if loss > 1.02)

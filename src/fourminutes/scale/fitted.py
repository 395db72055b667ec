"""What an all-reduce takes by links that were fitted to measured times, one an algorithm. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fourminutes.comm.fit import cost_terms
from fourminutes.errors import UserError
from fourminutes.plan import ScalePlan, Wire
from fourminutes.record import CommRecord, LinkFit
from fourminutes.scale.network import Costs, Link, Network, Part


@dataclass(frozen=True)
class Fitted:
    """One link for all messages of an algorithm, over any number of ranks (`Costs`).

    t = steps x alpha + volume x M / B, with the steps and the volume of `comm.fit.cost_terms`: for the ring
    t = 2(P-1) alpha + 2(P-1)/P M/B. The time for adding is part of 1/B. One rank takes no time.

    Attributes:
        links: alpha and B of each algorithm.
    """

    links: Mapping[str, Link]

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        """One stage that is the whole.

        Raises:
            UserError: there is no link, or no equation, for the algorithm.
        """
        if algorithm not in self.links:
            raise UserError(f"{algorithm}: was not measured; measure it with comm bench, or give the links in the plan")
        link, (steps, volume) = self.links[algorithm], cost_terms(algorithm, processes, group_ranks)
        wire_s = volume * message_bytes / link.bandwidth_byte_s
        return (Part(algorithm, "outer", steps * link.latency_s, wire_s),) if processes > 1 else ()


def costs_of(comm: CommRecord, wire: Wire, settings: ScalePlan) -> Costs:
    """What is measured, and in its place what the settings give.

    With several ranks a node the measured ring's link, or the given inner one, is that inside a node.

    Raises:
        UserError: `comm` has no fit for the ring.
    """
    measured = {fit.algorithm: _link(fit) for fit in reversed(_of_wire(comm, wire))}
    if "ring" not in measured:
        raise UserError(f"comm record of plan {comm.plan!r}: has no fit for ring; measure again with comm bench")
    if settings.node_ranks == 1:
        return Fitted({name: _given(link, settings) for name, link in measured.items()})
    inner = Link(
        latency_s=_or(settings.inner_latency_us, 1e-6, measured["ring"].latency_s),
        bandwidth_byte_s=_or(settings.inner_gbit_s, 1e9 / 8, measured["ring"].bandwidth_byte_s),
    )
    return Network(inner, _given(measured["ring"], settings), settings.node_ranks, has_trees=settings.has_trees)


def _of_wire(comm: CommRecord, wire: Wire) -> list[LinkFit]:
    """The fits in the number format, or those in another one, where a byte costs about the same."""
    return [fit for fit in comm.fits if fit.wire == wire] or list(comm.fits)


def _link(fit: LinkFit) -> Link:
    return Link(fit.alpha_s, fit.bandwidth_byte_s)


def _given(link: Link, settings: ScalePlan) -> Link:
    """The link between nodes: what the settings say of it, else as measured."""
    return Link(
        latency_s=_or(settings.link_latency_us, 1e-6, link.latency_s),
        bandwidth_byte_s=_or(settings.link_gbit_s, 1e9 / 8, link.bandwidth_byte_s),
    )


def _or(given: float | None, unit: float, measured: float) -> float:
    return measured if given is None else given * unit

"""What a collective costs on a network of two levels: links inside a node, and one link a node to the others. No torch.

Every all-reduce is a few stages, one after another; a stage first waits for its latencies and then has bytes to move
over one of the two levels. Steps and bytes are those of `comm.fit.cost_terms`, by level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from fourminutes.errors import UserError

Level = Literal["inner", "outer"]


@dataclass(frozen=True)
class Link:
    """What carries the messages: `latency_s` a step, in seconds, and `bandwidth_byte_s`, in bytes/s."""

    latency_s: float
    bandwidth_byte_s: float


@dataclass(frozen=True)
class Part:
    """A stage of a collective.

    Attributes:
        name: the collective and among whom, for people.
        level: the links that it is on.
        latency_s: waiting, beside which other buckets may use the link.
        wire_s: time of its bytes with the link to itself.
    """

    name: str
    level: Level
    latency_s: float
    wire_s: float

    @property
    def total_s(self) -> float:
        """With the link to itself."""
        return self.latency_s + self.wire_s


class Costs(Protocol):
    """Knows what an all-reduce takes."""

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        """The stages of an all-reduce of so many bytes over `processes` ranks in groups of `group_ranks`."""


def total_s(parts: Sequence[Part]) -> float:
    """Time of the stages one after another, with the links to themselves, in seconds."""
    return sum(part.total_s for part in parts)


@dataclass(frozen=True)
class Network:
    """Nodes of `node_ranks` ranks each, by equations (`Costs`).

    Ranks are numbered node by node, so that a ring enters each node once. A step of a ring takes as long as its slowest
    hop.

    Attributes:
        inner: from rank to rank inside a node; bandwidth of each rank.
        outer: from node to node; latency, and bandwidth of a node's link, which its ranks share.
        node_ranks: ranks a node.
        has_trees: whether the library's own all-reduce may also go over trees, as NCCL's from 2.4 on, and takes what is
            faster. Without, a hierarchy looks better beside it than it is beside such a library.
    """

    inner: Link
    outer: Link
    node_ranks: int
    has_trees: bool = False

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        """The stages of an all-reduce of M bytes over P ranks in groups of k.

        ring: the library's own all-reduce. hierarchical: the group's reduction to its master and its broadcast, which
        take as long as a ring's all-reduce each (2(k-1) steps), around the masters' all-reduce. torus: reduce-scatter
        and all-gather in the group, k-1 steps each, around as many all-reduces of M/k side by side as a node has ranks
        of one group.

        Raises:
            UserError: there is no equation for the algorithm.
        """
        if processes == 1:
            return ()
        within = min(group_ranks, processes)
        groups = math.ceil(processes / within)
        if algorithm == "ring" or (within == 1 and algorithm in ("hierarchical", "torus")):
            return (self._library("all_reduce, world", message_bytes, processes, self._nodes(processes)),)
        across_nodes = min(groups, self._nodes(processes))
        match algorithm:
            case "hierarchical":
                inside = self._in_group("reduce, within", 2, message_bytes, within)
                across = self._library("all_reduce, across", message_bytes, groups, across_nodes)
                after = self._in_group("broadcast, within", 2, message_bytes, within)
            case "torus":
                beside = min(within, self.node_ranks)
                inside = self._in_group("reduce_scatter, within", 1, message_bytes, within)
                across = self._library("all_reduce, across", message_bytes / within, groups, across_nodes, beside)
                after = self._in_group("all_gather, within", 1, message_bytes, within)
            case _:
                raise UserError(
                    f"algorithm: there is no cost equation for {algorithm!r}; use ring, hierarchical or torus"
                )
        return (inside, across, after) if groups > 1 else (inside, after)

    def _nodes(self, ranks: int) -> int:
        return math.ceil(ranks / self.node_ranks)

    def _in_group(self, name: str, rounds: int, message_bytes: float, ranks: int) -> Part:
        """So many times k-1 steps of M/k bytes each; over the outer links where a group spans nodes."""
        level, link = self._slowest(self._nodes(ranks))
        steps = rounds * (ranks - 1)
        return Part(name, level, steps * link.latency_s, steps / ranks * message_bytes / link.bandwidth_byte_s)

    def _library(self, name: str, message_bytes: float, ranks: int, nodes: int, beside: int = 1) -> Part:
        """The library's all-reduce among `ranks` on `nodes`, `beside` of them at once over each node's link."""
        level, link = self._slowest(nodes)
        ring = Part(
            name,
            level,
            2 * (ranks - 1) * link.latency_s,
            beside * 2 * (ranks - 1) / ranks * message_bytes / link.bandwidth_byte_s,
        )
        if not self.has_trees:
            return ring
        tree = Part(name, level, self._tree_latency_s(ranks, nodes), beside * 2 * message_bytes / link.bandwidth_byte_s)
        return min(ring, tree, key=lambda part: part.total_s)

    def _tree_latency_s(self, ranks: int, nodes: int) -> float:
        """Up and down a binary tree of nodes, each a chain of its ranks."""
        chain = math.ceil(ranks / nodes) - 1
        return 2 * (chain * self.inner.latency_s + math.ceil(math.log2(nodes)) * self.outer.latency_s)

    def _slowest(self, nodes: int) -> tuple[Level, Link]:
        """The links of a ring on so many nodes: those inside, or what is the slowest of both."""
        if nodes == 1:
            return "inner", self.inner
        both = (self.inner, self.outer) if self.node_ranks > 1 else (self.outer,)
        return "outer", Link(max(link.latency_s for link in both), min(link.bandwidth_byte_s for link in both))


@dataclass(frozen=True)
class Fastest:
    """For every message the fastest of some arrangements, as a well tuned hybrid takes it (`Costs`).

    Attributes:
        network: the links.
        algorithms: names of the arrangements.
    """

    network: Network
    algorithms: tuple[str, ...]

    def parts(self, algorithm: str, message_bytes: float, processes: int, group_ranks: int) -> tuple[Part, ...]:
        """The stages of the fastest one, whatever is asked for."""
        del algorithm
        return _fastest(self.network, self.algorithms, message_bytes, processes, group_ranks)


@lru_cache(maxsize=65_536)
def _fastest(
    network: Network, algorithms: tuple[str, ...], message_bytes: float, processes: int, group_ranks: int
) -> tuple[Part, ...]:
    return min((network.parts(name, message_bytes, processes, group_ranks) for name in algorithms), key=total_s)

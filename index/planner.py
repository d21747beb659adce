"""How a filter is served: exactly over the rows that pass, or by an index, asked for more or told of the filter.

Narrow filters ruin approximate search, and few rows are faster compared than sought. A filter that keeps a share s
makes the k-th hit about the (k/s)-th neighbour: what an index has to find for it is what it is tuned for at that depth.
The rows that pass are counted, not estimated, for every plan needs their mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import erfc, sqrt

from index.manifest import Depth, depth_for


class Plan(StrEnum):
    """How a query was searched.

    EXACT: all that may be hits were compared. APPROXIMATE: an index, no filter. WIDENED: an index was asked for more,
    and what fails the filter taken out. MASKED: an index that passed over what fails the filter.
    """

    EXACT = "exact"
    APPROXIMATE = "approximate"
    WIDENED = "widened"
    MASKED = "masked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Nanoseconds for each dimension on two of today's cores; only their ratios matter (benchmarks.filters).

    copy: of a row, so that those that pass lie side by side. compare: of a row with one query of many. hop: of one of a
    graph's ef. scan: of a row in a list. refine: of a candidate. Whatever the width: told, for each row of the part, of
    telling an index of a filter; heap, for each pair of a graph's ef, which it searches through for each of them.
    """

    copy: float = 0.6
    compare: float = 0.02
    hop: float = 4.3
    scan: float = 0.05
    refine: float = 0.5
    told: float = 3.0
    heap: float = 0.44


COSTS = Costs()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One part of a collection and the queries with one filter.

    num_rows: of the part, num_allowed of them pass. num_lists: of its index; None: a graph, which takes no filters.
    """

    num_rows: int
    num_allowed: int
    num_lists: int | None
    num_queries: int
    width: int

    @property
    def share(self) -> float:
        """Of the rows that pass."""
        return self.num_allowed / self.num_rows


def neighbours_for(k: int, share: float) -> float:
    """Neighbours that hold k rows which pass, where a share does at random: with two standard deviations to spare."""
    return (k + 2 * sqrt(k * (1 - share))) / share


def chance_of_few(k: int, num_neighbours: int, share: float) -> float:
    """That fewer than k of so many neighbours pass, where a share does at random: by the normal distribution."""
    deviation = sqrt(num_neighbours * share * (1 - share))
    if deviation == 0:
        return float(num_neighbours * share < k)
    return erfc((num_neighbours * share - k + 0.5) / deviation / sqrt(2)) / 2


def exact_cost(work: Work, costs: Costs) -> float:
    """Of comparing every row that passes."""
    return work.num_allowed * work.width * (costs.copy + work.num_queries * costs.compare)


def index_cost(work: Work, depth: Depth, costs: Costs, told: bool) -> float:
    """Of an index that is searched at a depth; `told`: it compares only rows that pass, and has to be told which."""
    heap = 0.0
    if work.num_lists is None:
        found = depth.effort * costs.hop
        heap = depth.effort**2 * costs.heap
    else:
        rows = work.num_allowed if told else work.num_rows
        found = rows * min(1.0, depth.effort / work.num_lists) * costs.scan
    each = heap + work.width * (found + depth.num_candidates * costs.refine)
    return work.num_queries * each + (work.num_rows * costs.told if told else 0.0)


def widened_cost(work: Work, depth: Depth, k: int, costs: Costs) -> float:
    """Of an index that is not told of the filter. A graph that finds too few for any of the queries leaves these to
    exact search, which copies the rows that pass even for one."""
    cost = index_cost(work, depth, costs, told=False)
    if work.num_lists is not None:
        return cost
    few = chance_of_few(k, depth.num_neighbours, work.share)
    any_few = 1 - (1 - few) ** work.num_queries
    return cost + work.num_allowed * work.width * (any_few * costs.copy + few * work.num_queries * costs.compare)


def choose(work: Work, depths: Sequence[Depth], k: int, costs: Costs = COSTS) -> Plan:
    """The cheapest plan for k hits under a filter; `depths`: what the part's index is tuned for."""
    if work.num_allowed <= k:
        return Plan.EXACT
    depth = depth_for(depths, neighbours_for(k, work.share))
    options = {Plan.EXACT: exact_cost(work, costs), Plan.WIDENED: widened_cost(work, depth, k, costs)}
    if work.num_lists is not None:
        options[Plan.MASKED] = index_cost(work, depth, costs, told=True)
    return min(options, key=lambda plan: options[plan])

"""The tree of call paths, weighed: what flame graphs draw.

A path weighs its own time and that of the paths below it, as in folded stacks: a call that ended in a tail jump is as
wide as what it jumped to. Without a clock, calls are weighed.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from callscope.reports.database import Database

MOST_PATHS: Final = 4000
"""Paths answered: the heaviest."""
_NODES = "SELECT node, parent, function_id, depth, calls, self_ns FROM nodes ORDER BY node"
_OF_THREAD = """
SELECT node, count(*) AS calls, sum(self_ns)::BIGINT AS self_ns FROM call_rows WHERE thread = {thread}
GROUP BY node ORDER BY node
"""


class Flame:
    """The paths of a trace, or of one of its threads."""

    def __init__(self, database: Database, thread: int | None = None) -> None:
        """Read them; of a thread, all its calls. Raises TraceError when the tables are damaged."""
        nodes = database.arrays(_NODES)
        if thread is not None:
            nodes = _of_thread(nodes, database.arrays(_OF_THREAD.format(thread=int(thread))))
        self._node, self._function, self._calls = nodes["node"], nodes["function_id"], nodes["calls"]
        self._depth = nodes["depth"].astype(np.int64)
        self._parent = _places(self._node, nodes["parent"])
        self._own = (nodes["self_ns"] if database.has_clock else nodes["calls"]).astype(np.int64)
        self._levels = _levels(self._depth)
        self._weight = self._own.copy()
        for level in self._levels[:0:-1]:
            inner = level[self._parent[level] >= 0]
            np.add.at(self._weight, self._parent[inner], self._weight[inner])

    def below(self, root: int | None = None, most: int = MOST_PATHS) -> dict[str, Any]:
        """The heaviest paths, `root` and those below it, as columns: node, parent, function, calls, weight, own.

        whole: the weight of all; left_out: how many paths there are more. An unknown root has no paths.
        """
        chosen = self._subtree(root) if root is not None else np.arange(len(self._node))
        order = np.lexsort((self._depth[chosen], -self._weight[chosen]))  # a path comes behind its parent
        shown = np.sort(chosen[order[:most]])
        parents = self._parent[shown]
        return {
            "node": self._node[shown].tolist(),
            "parent": np.where(parents >= 0, self._node[parents], -1).tolist() if len(shown) else [],
            "function": self._function[shown].tolist(),
            "calls": self._calls[shown].tolist(),
            "weight": self._weight[shown].tolist(),
            "own": self._own[shown].tolist(),
            "whole": int(self._own[chosen].sum()),
            "left_out": len(chosen) - len(shown),
        }

    def _subtree(self, root: int) -> NDArray[np.int64]:
        inside = np.zeros(len(self._node), bool)
        inside[self._node == root] = True
        for level in self._levels[1:]:
            inner = level[self._parent[level] >= 0]
            inside[inner] |= inside[self._parent[inner]]
        return np.flatnonzero(inside)


def _of_thread(nodes: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The nodes that a thread's calls have, with the figures of these; a call's callers are the thread's, too."""
    places = _places(nodes["node"], found["node"])
    known = places >= 0
    mine = {name: values[places[known]] for name, values in nodes.items()}
    return mine | {name: found[name][known] for name in ("calls", "self_ns")}


def _places(nodes: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """Rows of the nodes `wanted`; -1 for those there are none of."""
    if not len(nodes):
        return np.empty(0, np.int64)
    places = np.minimum(np.searchsorted(nodes, wanted), len(nodes) - 1)
    return np.where(nodes[places] == wanted, places, -1)


def _levels(depths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows of each depth, from the shallowest on."""
    order = np.argsort(depths, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(depths[order])) + 1)

"""A Python program that keeps its interpreter busy: recursion, objects, text, sorting. Argument: rounds."""

from __future__ import annotations

import json
import random
import sys


def queens(
    count: int,
    row: int = 0,
    columns: tuple[int, ...] = (),
    falling: tuple[int, ...] = (),
    rising: tuple[int, ...] = (),
) -> int:
    """Ways to place queens."""
    if row == count:
        return 1
    return sum(
        queens(count, row + 1, (*columns, at), (*falling, row - at), (*rising, row + at))
        for at in range(count)
        if at not in columns and row - at not in falling and row + at not in rising
    )


class Node:
    """Of a tree."""

    def __init__(self, key: float) -> None:
        self.key = key
        self.left: Node | None = None
        self.right: Node | None = None

    def add(self, key: float) -> None:
        """Put a key below."""
        side = "left" if key < self.key else "right"
        other = getattr(self, side)
        if other is None:
            setattr(self, side, Node(key))
        else:
            other.add(key)


def tree(count: int) -> None:
    """Make objects."""
    choose = random.Random(1)
    root = Node(0.5)
    for _ in range(count):
        root.add(choose.random())


def text(count: int) -> int:
    """Make text."""
    return len(json.dumps([{"a": i, "b": str(i) * 3, "c": [i / 7] * 3} for i in range(count)], indent=1))


for _ in range(int(sys.argv[1])):
    tree(4000)
    sys.stdout.write(f"{queens(7)} {text(3000)}\n")

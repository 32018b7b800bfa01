"""A loop of calls: writes a line every so many rounds."""

import json


def leaf(number: int) -> int:
    """Little."""
    return number * 3 + 1


def turn(start: int) -> int:
    """A round."""
    total = 0
    for number in range(start, start + 20_000):
        total += leaf(number)
    return total + len(json.dumps([str(number) for number in range(start, start + 2_000)]))


for round in range(4000):
    print(turn(round), flush=True)

"""Site percolation on a square lattice: how often a random grid lets water through from top to bottom.

Every sample has a seed of its own, so that a point of the sweep has one result, wherever and in how many attempts it
was computed.
"""

import random


def percolates(probability: float, size: int, seed: str) -> bool:
    """Is there a way from top to bottom over open sites, each open with this probability?"""
    chance = random.Random(seed)
    parent = list(range(size * size + 2))
    top, bottom = size * size, size * size + 1

    def root(site: int) -> int:
        while parent[site] != site:
            parent[site] = parent[parent[site]]
            site = parent[site]
        return site

    open_sites = [chance.random() < probability for _ in range(size * size)]
    for site, is_open in enumerate(open_sites):
        if not is_open:
            continue
        row, column = divmod(site, size)
        neighbours = [top] if row == 0 else [site - size] if open_sites[site - size] else []
        if row == size - 1:
            neighbours.append(bottom)
        if column and open_sites[site - 1]:
            neighbours.append(site - 1)
        for other in neighbours:
            parent[root(other)] = root(site)
    return root(top) == root(bottom)


def fraction(point: dict[str, float], first: int = 0, hits: int = 0) -> float:
    """The result of one point of the sweep, from sample number ``first`` on, with ``hits`` before it."""
    samples = int(point["samples"])
    for sample in range(first, samples):
        hits += percolates(point["probability"], int(point["size"]), f"{point['probability']}/{sample}")
    return hits / samples

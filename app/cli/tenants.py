"""Tenants for probes and demonstrations: names that are spread over the servers evenly."""

from collections.abc import Iterator

from app.protocol.placement import home_of


def spread(prefix: str, servers: int, each: int) -> list[str]:
    """Return ``each`` names for each server that is their home, unless they are moved; always the same ones.

    They come in turns, one of each server after the other.
    """
    by_home: dict[int, list[str]] = {server: [] for server in range(servers)}
    for name in _names(prefix):
        names = by_home[home_of(name.encode(), None, servers)]
        if len(names) < each:
            names.append(name)
        if all(len(names) == each for names in by_home.values()):
            return [by_home[server][turn] for turn in range(each) for server in range(servers)]
    raise AssertionError("there are names without end")


def _names(prefix: str) -> Iterator[str]:
    number = 0
    while True:
        yield f"{prefix}{number:02d}"
        number += 1

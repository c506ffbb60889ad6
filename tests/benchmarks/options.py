"""How much is measured: every number is a flag, the defaults are those of the goals where that is bearable."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self


def _option(default: Any, quick: Any, text: str) -> Any:
    return field(default=default, metadata={"quick": quick, "help": text})


@dataclass(frozen=True, slots=True)
class Options:
    """The numbers of a run; ``--quick`` takes the small ones."""

    pairs: int = _option(5, 1, "interleaved runs of ours and each peer, for every ratio")
    records: int = _option(2_000_000, 20_000, "of the reference job")
    tasks: int = _option(400_000, 20_000, "preloaded tasks of the whole path and of scaling")
    rate: int = _option(2_000, 1_000, "tasks a second for latency, takeover and moves")
    seconds: float = _option(20.0, 3.0, "of measured latency in one run")
    kills: int = _option(20, 1, "of each kind for takeover")
    sessions: int = _option(100_000, 2_000, "that exist during takeover and moves")
    moves: int = _option(10, 1, "planned stops and joins")
    migrations: int = _option(20, 1, "of a tenant of each size")
    moving_sessions: int = _option(200_000, 3_000, "of the large tenant that moves")
    moving_rate: int = _option(1_000, 300, "tasks a second of the tenant that moves, and as many of its neighbours")
    releases: int = _option(3, 1, "of a parked tenant")
    parked: int = _option(200_000, 5_000, "tasks that are parked for one release")
    probes: int = _option(16, 8, "sessions that get a task every 10 ms during moves")
    rows: int = _option(1_000_000, 20_000, "to restore")
    large_sessions: int = _option(500_000, 5_000, "of 200 bytes in each store; the goal names 5000000")
    minutes: float = _option(3.0, 0.15, "of full load; the goal names 30")
    workers: tuple[int, ...] = _option((1, 2, 3), (1, 2), "how many workers, for scaling")
    tenants: tuple[int, ...] = _option((1_000, 10_000, 100_000, 1_000_000), (1_000, 4_000), "for routing")
    upload_mb: int = _option(1_024, 16, "of one upload")
    uploads: int = _option(200, 10, "of 5 MB at once")
    floating: int = _option(10_000, 200, "connections that nobody services")
    idle: int = _option(1_000, 50, "open sockets that say nothing")
    resumes: int = _option(5, 1, "uploads whose worker is killed")
    exchanges: int = _option(500, 20, "at once, for their throughput")
    requests_rate: int = _option(500, 100, "requests a second, for the latency of exchanges")
    exchange_kills: int = _option(5, 1, "of the manager of an exchange")
    starts: int = _option(3, 1, "of the embedded broker")
    engines: tuple[str, ...] = _option((), (), "peers to run beside ours (default: all)")

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        for entry in fields(cls):
            several = isinstance(entry.default, tuple)
            parser.add_argument(
                f"--{entry.name.replace('_', '-')}",
                type=_type_of(entry.default),
                nargs="+" if several else None,
                metavar="N",
                help=f"{entry.metadata['help']} (default: {_text(entry.default)})",
            )

    @classmethod
    def taken_from(cls, arguments: argparse.Namespace) -> Self:
        values: dict[str, Any] = {}
        for entry in fields(cls):
            given = getattr(arguments, entry.name)
            if given is not None:
                values[entry.name] = tuple(given) if isinstance(given, list) else given
            elif arguments.quick:
                values[entry.name] = entry.metadata["quick"]
        return cls(**values)


def _type_of(default: Any) -> type:
    if isinstance(default, tuple):
        return type(default[0]) if default else str
    return type(default)


def _text(default: Any) -> str:
    values: Sequence[Any] = default if isinstance(default, tuple) else (default,)
    return " ".join(str(value) for value in values) or "all"

"""When a server has closed a view: what it reports and announces, over the states of all routers.

A view is closed here when the markers of all routers were read and each router's part has ended: all rows have left, or
all have arrived and what was held is performed. The steward waits for this word of every server (rule L3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from app.protocol.affinity import Aligned, Change, Early, State
from app.protocol.chunks import EMPTY, Digest
from app.protocol.markers import Closed
from app.protocol.moves import Announce


@dataclass(frozen=True, slots=True)
class Report:
    """Send this record to the steward, by ``commands[0]``."""

    record: Closed


Notice: TypeAlias = Announce | Report


def closed(states: Sequence[State]) -> int:
    """The last view that is closed here."""
    return min(state.change.epoch - (not isinstance(state, Aligned | Early)) for state in states)


def notices(before: Sequence[State], after: Sequence[State], server: int) -> tuple[Notice, ...]:
    """What follows from a step of one router's state, given the states of all routers before it and after it."""
    said: list[Notice] = []
    reached = min(state.change.epoch for state in after)
    if reached > min(state.change.epoch for state in before):
        said.append(Announce("marker-reached", None, False, {"view": reached, "server": server}))
    epoch = closed(after)
    if epoch > closed(before):
        name = _end(after[0].change, server)
        if name is not None:
            fields: dict[str, Any] = {"view": epoch, "server": server, "certificate": _certificate(after)}
            manager = dict(after[0].change.managers).get(server)
            said.append(Announce(name, None, False, fields if manager is None else {**fields, "manager": manager}))
        said.append(Report(Closed(server, epoch)))
    return tuple(said)


def again(states: Sequence[State], server: int) -> Report:
    """The report once more, whenever a server opens: the steward takes it as often as it comes."""
    return Report(Closed(server, closed(states)))


def _end(change: Change, server: int) -> str | None:
    if server in change.failed:
        return "server-closed"
    if server in change.restored:
        return "server-restored"
    return "server-normal" if server in change.after else None


def _certificate(states: Sequence[State]) -> list[dict[str, Any]]:
    """What left here and what arrived, over all routers: checksums add up like counts."""
    sums: dict[tuple[int, int], Digest] = {}
    for state in states:
        for moved in state.moved if isinstance(state, Aligned) else ():
            pair = (moved.source, moved.target)
            sums[pair] = sums.get(pair, EMPTY).add(moved.digest.rows, moved.digest.sum)
    return [
        {"source": source, "target": target, "rows": digest.rows, "checksum": digest.text}
        for (source, target), digest in sorted(sums.items())
    ]

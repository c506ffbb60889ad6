"""Poisonous tasks: what a successor does with the records that may have killed the host before it.

A record that kills its host would kill every successor as well. So a successor announces, outside the
transaction and before it runs them, the records that may have been in progress; an announcement that outlives
its host counts one more dead host against them. From the last but one on they run alone, one by one, so that
the next dead host convicts one record and no other.

    dead host --> announced together --dead host--> ... --> announced alone --dead host--> condemned
                       |                                         |
                       +------------- committed -----------------+--> next record ... limit --> trust

A :class:`Suspicion` is kept in ``{ns}.suspects`` by server stream (:func:`stream_key`), where positions are
offsets of ``work``, and by waiting task that was running in the background (:func:`waiting_key`), where the
position is its arrival number, plus one once it is done. The caller must keep six rules:

* it reads the suspicion before it performs anything at the position, and asks :func:`takeover`;
* it writes what the decision carries, and waits until that is durable, before it performs any of those
  records;
* if it leaves before that, it writes the decision's suspicion withdrawn (:func:`withdraw`): it alone still
  knows of the death;
* it commits announced records only when all of them that it has begun have ended; one that runs on as a
  waiting task takes the suspicion along, written before that commit (:func:`carry`);
* it asks :func:`progress` after each commit, until the answer is :class:`Trust`;
* before it announces a record alone, its worker finishes and commits what it has begun of any server, and
  begins nothing else until the record is committed: else one is convicted for what another one did.

Source: section 2.2.8 of the design.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from app.errors import LocalProtocolError, PeerProtocolError

VERSION = 1


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What was announced about a stream.

    ``offset``: the first suspected record; with ``alone``, the only one that runs. ``limit``: records from
    ``offset`` up to, not including, this one may have been in progress on each of ``crashes`` dead hosts in a
    row. ``running``: the announcing host may be performing them; cleared when it leaves without dying.
    ``timed_out``: a record whose handler exceeded its time and could not be cancelled, so that its host
    ended itself. ``condemned``: the record at ``offset`` killed its last host and is not performed again.
    """

    offset: int
    limit: int
    crashes: int
    alone: bool
    running: bool = True
    timed_out: int | None = None
    condemned: bool = False

    def encode(self) -> bytes:
        """Return the value of the record in ``{ns}.suspects``."""
        return json.dumps({"v": VERSION, **asdict(self)}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> "Suspicion":
        """Read a value that :meth:`encode` wrote.

        Raises:
            PeerProtocolError: a later version wrote it, or somebody else.
        """
        try:
            fields = json.loads(value)
            if fields.pop("v") != VERSION:
                raise PeerProtocolError("a suspicion of another version: all workers must run one release")
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PeerProtocolError(f"not a suspicion: {value[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class Trust:
    """Nothing at the position is suspected: perform as always. A suspicion still stored may be deleted."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Write the suspicion, then perform and commit the records from its ``offset`` to before ``end``.

    They may be committed in more than one unit. With ``alone`` it is one record, the next one of the stream.
    """

    suspicion: Suspicion

    @property
    def end(self) -> int:
        """Where the announced records end: at the limit, or before a record that timed out."""
        suspicion = self.suspicion
        timed_out = suspicion.timed_out
        return suspicion.limit if timed_out is None or timed_out <= suspicion.offset else timed_out


@dataclass(frozen=True, slots=True)
class Condemn:
    """Do not perform the record at ``offset``: ``failed`` with this error, and a dead letter; then commit."""

    offset: int
    reason: Literal["HostDied", "TaskTimeout"]
    suspicion: Suspicion


Decision: TypeAlias = Trust | Announce | Condemn


def takeover(previous: Suspicion | None, committed: int, limit: int, *, died: bool, max_crashes: int) -> Decision:
    """Decide what a new host does at its first position.

    Args:
        previous: the stored suspicion of the stream, if any.
        committed: the stream's committed offset.
        limit: the first offset that cannot have been in progress at the dead host: the end of the stream now,
            but at most one unit of work after ``committed``.
        died: whether the host before died, or was evicted, rather than left; if unknown, true.
        max_crashes: dead hosts that convict a record, 2 or more.
    """
    if max_crashes < 2:
        raise LocalProtocolError("max_crashes must be 2 or more: one dead host does not show which record it was")
    if previous is None or not _covers(previous, committed):
        if not died or limit <= committed:
            return Trust()
        return Announce(Suspicion(committed, limit, crashes=1, alone=max_crashes == 2))
    if previous.timed_out == committed:
        return Condemn(committed, "TaskTimeout", replace(previous, offset=committed, running=False))
    if previous.condemned and previous.offset == committed:
        return Condemn(committed, "HostDied", previous)
    crashes = previous.crashes
    # A host announces before it performs: at another position than the announced one it had not begun.
    if died and previous.running and previous.offset == committed:
        crashes += 1
        if previous.alone and crashes >= max_crashes:
            # The count stays: this host died with one record, which says nothing about those behind it.
            return Condemn(committed, "HostDied", replace(previous, running=False, condemned=True))
    alone = crashes >= max_crashes - 1
    return Announce(replace(previous, offset=committed, crashes=crashes, alone=alone, running=True, condemned=False))


def progress(announced: Suspicion, committed: int, *, max_crashes: int) -> Decision:
    """Decide what the host that wrote ``announced`` does next, now that it has committed to ``committed``."""
    return takeover(announced, committed, committed, died=False, max_crashes=max_crashes)


def withdraw(announced: Suspicion) -> Suspicion:
    """Return what a host writes when it gives a stream up without dying, once its unit has ended.

    Without it, the death of a next host that has not announced anything yet would count against these
    records.
    """
    return replace(announced, running=False)


def carry(announced: Suspicion, arrival: int) -> Suspicion:
    """Return what is written under a waiting task's own key when an announced record runs on as that task.

    Otherwise a task that kills its hosts in the background would be counted from the start again.
    """
    return replace(announced, offset=arrival, limit=arrival + 1, timed_out=None)


def timed_out(previous: Suspicion | None, committed: int, offset: int) -> Suspicion:
    """Return what a host writes before it ends itself, because the handler of ``offset`` cannot be cancelled.

    The death that follows has its culprit: it does not count against the records in progress beside it.
    """
    if previous is not None and _covers(previous, committed):
        return replace(previous, offset=committed, running=False, timed_out=offset)
    limit = offset + 1
    return Suspicion(committed, limit, crashes=0, alone=False, running=False, timed_out=offset)


def stream_key(server: int) -> bytes:
    """Return the key of a server's stream in ``{ns}.suspects``."""
    return b"server/%d" % server


def waiting_key(server: int, session: bytes, arrival: int) -> bytes:
    """Return the key of a waiting task in ``{ns}.suspects``; ``session`` is the session's key."""
    return b"server/%d/%b/%d" % (server, session.hex().encode(), arrival)


def held_key(server: int, router: int, source: int) -> bytes:
    """Return the key of the tasks that a server holds for sessions from ``source`` in ``{ns}.suspects``."""
    return b"server/%d/held/%d/%d" % (server, router, source)


def of_held(server: int, found: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those of the records about one server that concern held tasks."""
    return {key: value for key, value in found.items() if key.startswith(b"server/%d/held/" % server)}


def about(server: int, found: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the records of ``{ns}.suspects`` that concern one server: its stream and its waiting tasks."""
    stream = stream_key(server)
    return {key: value for key, value in found.items() if key == stream or key.startswith(stream + b"/")}


def _covers(suspicion: Suspicion, committed: int) -> bool:
    """Tell whether the record at ``committed`` is one of the suspected ones."""
    return suspicion.offset <= committed < suspicion.limit

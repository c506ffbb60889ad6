"""Vigilance after the death of a host: the shell around :mod:`app.protocol.suspects` for one server.

Most takeovers suspect nobody for long: the records that may have been in progress are announced a slice at a time,
performed, committed, and trusted. Only when hosts keep dying at the same place does it come down to single records.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from app.engine.announcements import Announcements
from app.errors import UnavailableError
from app.protocol import suspects
from app.protocol.suspects import Announce, Condemn, Decision, Suspicion, Trust

log = logging.getLogger(__name__)

SLICE = 500
"""So many offsets are announced together; it bounds how many records may have to be performed one by one."""

Verdict: TypeAlias = tuple[str, str]
"""Error type and message of a task that is failed without being run again."""

_REASONS = {
    "HostDied": "it was running when host after host died (MAX_CRASHES); it is not run again",
    "TaskTimeout": "its handler did not return in time (TASK_TIMEOUT) and ended its worker; it is not run again",
}


class Vigilance:
    """What is suspected in one server's stream, and among the tasks that were waiting there.

    Args:
        announcements: the topic ``suspects``.
        server: the server's number.
        committed: the committed offset of its stream when the place opened.
        end: the end of its stream then; what came later cannot have been in progress at the dead host.
        died: whether the host before died with work in progress.
        found: what stands in ``suspects`` about the stream, and about tasks that wait.
        key: of the stream there, if it is not the server's own.
    """

    def __init__(
        self,
        announcements: Announcements,
        *,
        server: int,
        committed: int,
        end: int,
        died: bool,
        max_crashes: int,
        found: Mapping[bytes, bytes],
        key: bytes | None = None,
    ) -> None:
        self._announcements = announcements
        self._server = server
        self._end = end
        self._died = died
        self._max_crashes = max_crashes
        self._key = suspects.stream_key(server) if key is None else key
        self._standing = {name: Suspicion.decode(value) for name, value in found.items()}
        self._committed = committed
        self._decision: Decision = Trust()
        self.performing: Callable[[], int] = lambda: committed
        """The offset of the record of the stream that is being performed."""
        self._decide(self._takeover(self._standing.get(self._key), committed))

    def _takeover(self, previous: Suspicion | None, committed: int) -> Decision:
        limit = min(self._end, committed + SLICE)
        return suspects.takeover(previous, committed, limit, died=self._died, max_crashes=self._max_crashes)

    # -- the stream -----------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Is the next record of the stream under suspicion?"""
        return not isinstance(self._decision, Trust)

    @property
    def alone(self) -> bool:
        """Is it to be performed and committed on its own?"""
        match self._decision:
            case Announce(suspicion):
                return suspicion.alone
            case decision:
                return isinstance(decision, Condemn)

    @property
    def condemns(self) -> bool:
        """Must the next record, whichever it is, not be run?"""
        return isinstance(self._decision, Condemn)

    @property
    def end(self) -> int:
        """The first offset that is not announced."""
        return self._decision.end if isinstance(self._decision, Announce) else self._committed

    def begin(self) -> Verdict | None:
        """The next record is about to be performed: announce it, or say why it must not run."""
        match self._decision:
            case Condemn(_, reason):
                return reason, _REASONS[reason]
            case Announce(suspicion) if suspicion != self._standing.get(self._key):
                self._write(self._key, suspicion)
        return None

    def committed(self, position: int) -> None:
        """The stream is committed up to ``position``: what was announced below it is trusted."""
        self._committed = position
        match self._decision:
            case Condemn(_, _, suspicion):
                self._decide(suspects.progress(suspicion, position, max_crashes=self._max_crashes))
            case Announce(suspicion):
                self._decide(suspects.progress(suspicion, position, max_crashes=self._max_crashes))
        if not self.active and self._died and position < self._end:
            self._decide(self._takeover(None, position))

    def _decide(self, decision: Decision) -> None:
        self._decision = decision
        if isinstance(decision, Condemn):
            log.error(
                "server-%d: the task at offset %d is not run again (%s)",
                self._server,
                decision.offset,
                decision.reason,
            )
            self._write(self._key, decision.suspicion)
        elif isinstance(decision, Trust):
            self._forget(self._key)

    # -- what was waiting -----------------------------------------------------------------------------------------

    def keep_waiting(self, tasks: Collection[tuple[bytes, int]]) -> None:
        """These tasks wait here, by session and arrival: what stands about any other one is out of date.

        Its host died between the commit of the task's end and the word of it. Arrival numbers start again with a
        session that is loaded anew, so another task would bear that suspicion.
        """
        kept = {suspects.waiting_key(self._server, session, arrival) for session, arrival in tasks}
        for key in self._standing.keys() - kept - {self._key}:
            self._forget(key)

    def waiting_suspected(self, session: bytes, arrival: int) -> bool:
        """Does a waiting task that is about to run for the first time here need :meth:`begin_waiting`?"""
        return self._died or suspects.waiting_key(self._server, session, arrival) in self._standing

    def begin_waiting(self, session: bytes, arrival: int) -> Verdict | Suspicion | None:
        """A task that waited when this server was taken over is about to run.

        Returns the verdict if it must not, else what was announced.
        """
        key = suspects.waiting_key(self._server, session, arrival)
        match self._waiting_takeover(key, arrival):
            case Condemn(_, reason, suspicion):
                # It goes with the commit of the failure: a host that dies before must not begin to count anew.
                self._write(key, suspicion)
                return reason, _REASONS[reason]
            case Announce(suspicion):
                self._write(key, suspicion)
                return suspicion
        return None

    def _waiting_takeover(self, key: bytes, arrival: int) -> Decision:
        previous = self._standing.get(key)
        return suspects.takeover(previous, arrival, arrival + 1, died=self._died, max_crashes=self._max_crashes)

    def carry_over(self, session: bytes, arrival: int) -> None:
        """A suspected record of the stream goes on as a waiting task: so does what is known about it."""
        announced = self._standing.get(self._key)
        if announced is not None and announced.crashes:
            key = suspects.waiting_key(self._server, session, arrival)
            self._write(key, suspects.carry(announced, arrival))

    def ended_waiting(self, session: bytes, arrival: int) -> None:
        """A waiting task has ended and its end is committed."""
        self._forget(suspects.waiting_key(self._server, session, arrival))

    # -- ends -----------------------------------------------------------------------------------------------------

    def timed_out(self, session: bytes, arrival: int) -> None:
        """A handler in line does not return: this worker is about to end itself. In the watchdog's thread.

        ``arrival`` is that of the waiting task, or 0 for the record of the stream that is being performed.
        """
        if arrival:
            key = suspects.waiting_key(self._server, session, arrival)
            self._write(key, suspects.timed_out(self._standing.get(key), arrival, arrival))
        else:
            announced = self._standing.get(self._key)
            self._write(self._key, suspects.timed_out(announced, self._committed, self.performing()))

    def withdraw(self, not_begun: Collection[tuple[bytes, int]] = ()) -> dict[bytes, bytes]:
        """The server is given up without a death: what was announced is no evidence any more.

        Args:
            not_begun: waiting tasks that were to run here under suspicion, by session and arrival: this host alone
                still knows that the one before died of one of them.

        Returns what stands in ``suspects`` about this server from now on.
        """
        if isinstance(self._decision, Announce):
            # It may not have been written yet. A condemnation has been.
            self._standing[self._key] = self._decision.suspicion
        for session, arrival in not_begun:
            key = suspects.waiting_key(self._server, session, arrival)
            decision = self._waiting_takeover(key, arrival)
            if isinstance(decision, Announce | Condemn):
                self._standing[key] = decision.suspicion
        withdrawn = {key: suspects.withdraw(suspicion).encode() for key, suspicion in self._standing.items()}
        try:
            for key, value in withdrawn.items():
                self._announcements.write(key, value, timeout=1.0)
        except UnavailableError as error:
            log.warning("server-%d: %s; the next death there counts once more", self._server, error)
        return withdrawn

    def _write(self, key: bytes, suspicion: Suspicion) -> None:
        self._announcements.write(key, suspicion.encode())
        self._standing[key] = suspicion

    def _forget(self, key: bytes) -> None:
        if self._standing.pop(key, None) is not None:
            self._announcements.write(key, None)

"""Devices that speak Kafka: bytes come and go as records, serviced by the owner of their connection.

A record of bytes is answered once they are durable and the row says so. What was read from the topic and not answered
is sent again by the device, which asks where to go on when it hears nothing.
"""

import base64
import binascii
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from agents.transfer_words import reply_fields, shelf_in
from app.errors import RecordError, StorageError
from app.protocol.conveyance import (
    Completing,
    Confirm,
    Conveying,
    Done,
    Floating,
    Found,
    Granted,
    Lock,
    Nak,
    Progress,
    Reason,
    Release,
    Reply,
    Segments,
    State,
    refusal,
)
from app.storage import Storage, Writer
from app.storage.conclude import checksum_of, shelf_of
from app.storage.survey import survey

if TYPE_CHECKING:
    from agents.transfers import Owner

WAITING_MAX: Final = 32 << 20
"""Bytes that may wait to be written; beyond it the topic is read no further."""

_DEVICE: Final = "device-"


@dataclass(slots=True)
class Piece:
    """Bytes of a device, and the request that brought them."""

    offset: int
    data: bytes
    fields: dict[str, Any]


@dataclass(slots=True)
class Session:
    """One connection serviced here. ``at``: the offset up to which bytes were taken; None until the row is checked."""

    instance: int
    writer: Writer
    start: int
    pieces: deque[Piece] = field(default_factory=deque)
    working: bool = False
    last: dict[str, Any] = field(default_factory=dict)
    used: float = 0.0


class Devices:
    """The device side of one owner. In the engine's thread, but for what is said to run in the pool."""

    def __init__(self, owner: "Owner") -> None:
        self._owner = owner
        self._sessions: dict[str, Session] = {}
        self._waiting = 0

    @property
    def full(self) -> bool:
        """Do too many bytes wait?"""
        return self._waiting > WAITING_MAX

    def holds(self, connection: str) -> int | None:
        """The instance under which a device that is heard of is serviced here."""
        session = self._sessions.get(connection)
        lease = self._owner.context.terms.lease_ms / 1000
        if session is None or (not session.working and time.monotonic() - session.used > lease):
            self._drop(connection)
            return None
        return session.instance

    def takes(self, connection: str, fields: dict[str, Any]) -> bool:
        """Service a request that is about bytes; False if it is none. RecordError: it is wrong."""
        match fields.get("op"):
            case "data":
                self._data(connection, fields)
            case "read":
                self._read(connection, fields)
            case "ack":
                self._ack(connection, fields)
            case _:
                return False
        return True

    # -- push -----------------------------------------------------------------------------------------------------

    def _data(self, connection: str, fields: dict[str, Any]) -> None:
        try:
            piece = Piece(int(fields["offset"]), base64.b64decode(fields["data"], validate=True), fields)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise RecordError(f"data needs offset and base64: {error}") from error
        owner, session = self._owner, self._sessions.get(connection)
        state = owner.state(connection)
        if session is not None and session.instance != state.instance:
            self._drop(connection)
            session = None
        if session is None:
            request = f"{_DEVICE}{time.time_ns()}"
            # Whoever serviced a device before was its owner then: it is so no more.
            before = isinstance(state, Conveying) and state.held.request.startswith(_DEVICE)
            seen = state.instance if before else None
            reply, state = owner.step(connection, Lock(int(time.time() * 1000), owner.context.worker, request, seen))
            if not isinstance(reply, Granted) or not isinstance(state, Conveying):
                owner.answer(connection, fields, reply_fields(reply, state))
                return
            prefix = shelf_of(connection, state.conveyance).prefix(reply.instance)
            session = Session(reply.instance, owner.context.storage.writer(prefix), reply.offset)
            self._sessions[connection] = session
            # Nothing is written under a number that might be given to somebody else yet.
            session.working = True
            owner.after(lambda: self._check(connection, session, state))
        session.used = time.monotonic()
        session.pieces.append(piece)
        self._waiting += len(piece.data)
        self._go_on(connection, session)

    def _check(self, connection: str, session: Session, state: Conveying) -> None:
        storage = self._owner.context.storage
        self._submit(
            lambda: survey(storage, connection, state.conveyance, session.instance),
            lambda done: self._checked(connection, session, done),
        )

    def _checked(self, connection: str, session: Session, done: "Future[Segments | None]") -> None:
        if self._gone(connection, session):
            return
        if done.exception() is not None:
            self._refuse(connection, session, Reason.STORAGE)
            return
        found = done.result()
        if found is not None:
            self._owner.step(connection, Found(int(time.time() * 1000), session.instance, found))
            session.start = sum(segment.length for segment in found)
        session.working = False
        self._go_on(connection, session)

    def _go_on(self, connection: str, session: Session) -> None:
        """Write what has come in one go, in the pool."""
        if session.working or not session.pieces:
            return
        pieces, session.pieces = list(session.pieces), deque()
        self._waiting -= sum(len(piece.data) for piece in pieces)
        at = session.start + session.writer.length
        wanted: list[bytes] = []
        for piece in pieces:
            if piece.offset <= at < piece.offset + len(piece.data):
                wanted.append(piece.data[at - piece.offset :])
                at = piece.offset + len(piece.data)
        session.working = True
        self._submit(
            lambda: _store(session.writer, wanted), lambda done: self._stored(connection, session, pieces, at, done)
        )

    def _stored(
        self, connection: str, session: Session, pieces: list[Piece], at: int, done: "Future[Segments]"
    ) -> None:
        if self._gone(connection, session):
            return
        session.working = False
        if done.exception() is not None:
            session.pieces.extendleft(reversed(pieces))
            self._refuse(connection, session, Reason.STORAGE)
            return
        owner = self._owner
        reply, state = owner.step(connection, Progress(int(time.time() * 1000), session.instance, done.result()))
        for piece in pieces:
            said: Reply = Nak(Reason.MISMATCH, at) if piece.offset > at else reply
            owner.answer(connection, piece.fields, reply_fields(said, state))
        session.last = pieces[-1].fields
        if isinstance(state, Completing):
            complete = state
            owner.after(lambda: owner.conclude(connection, complete))
        elif not isinstance(state, Conveying):
            self._drop(connection)
        else:
            self._go_on(connection, session)

    def concluded(self, connection: str, reply: Reply, state: State) -> None:
        """The whole of a message was made here: tell the device that sent its last byte."""
        session = self._sessions.get(connection)
        if session is not None:
            self._owner.answer(connection, session.last, reply_fields(reply, state))
            self._drop(connection)

    def _refuse(self, connection: str, session: Session, reason: Reason) -> None:
        """The storage does not take it: let go, and say where to go on."""
        owner = self._owner
        _, state = owner.step(connection, Release(int(time.time() * 1000), session.instance, ()))
        offset = state.conveyance.offset if isinstance(state, Floating | Conveying | Completing) else 0
        for piece in session.pieces:
            owner.answer(connection, piece.fields, reply_fields(Nak(reason, offset), state))
        self._drop(connection)

    # -- pull -----------------------------------------------------------------------------------------------------

    def _read(self, connection: str, fields: dict[str, Any]) -> None:
        """Give bytes; asking for those from an offset on confirms the ones before it."""
        owner = self._owner
        try:
            offset, length = int(fields["offset"]), min(int(fields["length"]), owner.context.limit // 2)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"read needs offset and length: {error}") from error
        state = owner.state(connection)
        if not isinstance(state, Done) or not 0 <= offset < state.size or length <= 0:
            said = Nak(Reason.MISMATCH, state.confirmed) if isinstance(state, Done) else refusal(state)
            owner.answer(connection, fields, reply_fields(said, state))
            return
        _, state = owner.step(connection, Confirm(int(time.time() * 1000), offset, verified=False))
        assert isinstance(state, Done)
        name, size, storage = shelf_in(connection, state).object, state.size, owner.context.storage

        def told(done: "Future[bytes]") -> None:
            if owner.closed:
                return
            owner.touch(connection, owner.state(connection))
            if done.exception() is not None:
                owner.answer(connection, fields, reply_fields(Nak(Reason.STORAGE, offset), state))
                return
            data = base64.b64encode(done.result()).decode()
            owner.answer(connection, fields, {"v": 1, "reply": "data", "offset": offset, "data": data, "size": size})

        self._submit(lambda: _load(storage, name, offset, length), told)

    def _ack(self, connection: str, fields: dict[str, Any]) -> None:
        owner, state = self._owner, self._owner.state(connection)
        given = str(fields.get("checksum", ""))
        if not isinstance(state, Done):
            owner.answer(connection, fields, reply_fields(refusal(state), state))
            return
        name = shelf_in(connection, state).object
        storage, size = owner.context.storage, state.size

        def told(done: "Future[bool]") -> None:
            if not owner.closed:
                right = done.exception() is None and done.result()
                reply, after = owner.step(connection, Confirm(int(time.time() * 1000), size, verified=right))
                owner.answer(connection, fields, reply_fields(reply, after))

        self._submit(lambda: matches(storage, name, size, given, state.checksum), told)

    # -- the rest -------------------------------------------------------------------------------------------------

    def _submit(self, work: Any, then: Any) -> None:
        future = self._owner.context.pool.submit(work)
        future.add_done_callback(lambda done: self._owner.context.engine.submit(lambda: then(done)))

    def _gone(self, connection: str, session: Session) -> bool:
        return self._owner.closed or self._sessions.get(connection) is not session

    def _drop(self, connection: str) -> None:
        session = self._sessions.pop(connection, None)
        if session is not None:
            self._waiting -= sum(len(piece.data) for piece in session.pieces)
            self._owner.context.pool.submit(session.writer.close)

    def close(self) -> None:
        """Let go of all files; the rows say how far each came."""
        for connection in list(self._sessions):
            self._drop(connection)


def _store(writer: Writer, chunks: list[bytes]) -> Segments:
    if chunks:
        writer.write(chunks)
    return writer.sync(final=True)


def _load(storage: Storage, name: str, offset: int, length: int) -> bytes:
    with storage.reading(name) as reader:
        return reader.at(offset, length)


def matches(storage: Storage, name: str, size: int, given: str, known: str) -> bool:
    """Is this the checksum of an object? An empty one asks for nothing."""
    if not given or given == known:
        return True
    try:
        return checksum_of(storage, name, size, given.partition(":")[0]) == given
    except (StorageError, ValueError):
        return False

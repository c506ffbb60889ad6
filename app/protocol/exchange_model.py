"""The words of one exchange at its manager: its states, what happens to it, and what the manager does then.

The decisions are :mod:`app.protocol.exchange`'s. Restart data are JSON as bytes, never looked into; bodies stay with
whoever stores them, and only their numbers pass through here.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

WINDOW_DEFAULT: Final = 8
WINDOW_MAX: Final = 1_000
"""Requests that may be submitted and not yet acknowledged by the client, together."""

NOTHING: Final = b"null"
"""The restart data of a side that has given none yet."""


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such exchange, or it is over and forgotten."""


@dataclass(frozen=True, slots=True)
class Open:
    """An exchange that goes on.

    Requests ``answered + 1 … submitted`` are the request queue, responses ``acknowledged + 1 … answered`` the response
    queue. ``incarnation`` is the offset of the record with which the client's process opened the exchange;
    ``assignment`` counts how often a server session was started for it. ``client_op`` and ``server_op`` count the
    operations of either since then. ``server`` is empty while no server session is to be had. ``careful``: a server
    session died while requests waited here, so the next one tells what it begins; ``begun``: it has begun the
    oldest; ``crashes``: server sessions in a row that died with that one begun.
    """

    client: str
    incarnation: int
    window: int = WINDOW_DEFAULT
    deadline_ms: int | None = None
    client_op: int = 0
    submitted: int = 0
    answered: int = 0
    acknowledged: int = 0
    client_restart: bytes = NOTHING
    server: str = ""
    server_incarnation: int = 0
    assignment: int = 0
    server_op: int = 0
    server_restart: bytes = NOTHING
    careful: bool = False
    begun: bool = False
    crashes: int = 0

    # Every request makes three of these. Field by field that takes a third of the time of `dataclasses.replace`.

    def after_client(self, op: int, submitted: int, acknowledged: int, restart: bytes | None) -> "Open":
        """How it stands after an operation of the client; restart data of None stay as they are."""
        return Open(
            self.client,
            self.incarnation,
            self.window,
            self.deadline_ms,
            op,
            submitted,
            self.answered,
            acknowledged,
            self.client_restart if restart is None else restart,
            self.server,
            self.server_incarnation,
            self.assignment,
            self.server_op,
            self.server_restart,
            self.careful,
            self.begun,
            self.crashes,
        )

    def after_response(self, op: int, number: int, restart: bytes | None) -> "Open":
        """How it stands after the response to request ``number``: nothing is said against the next one."""
        return Open(
            self.client,
            self.incarnation,
            self.window,
            self.deadline_ms,
            self.client_op,
            self.submitted,
            number,
            self.acknowledged,
            self.client_restart,
            self.server,
            self.server_incarnation,
            self.assignment,
            op,
            self.server_restart if restart is None else restart,
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """An exchange that is over: ``finished``, ``cancelled`` or ``expired``, and how it stood then."""

    outcome: str
    reason: str
    last: Open


Exchange: TypeAlias = Absent | Open | Ended


# -- what happens: the client ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A process of the client claims the exchange. ``window`` and ``deadline_ms`` are None where it leaves them."""

    client: str
    incarnation: int
    window: int | None = None
    deadline_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ClientAsked:
    """The client asks for its restart again."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request, and the client's restart data with it (None: they stay)."""

    incarnation: int
    op: int
    number: int
    restart: bytes | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The client is done with the responses up to ``number``."""

    incarnation: int
    op: int
    number: int
    restart: bytes | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The client says that the exchange is over."""

    incarnation: int
    op: int


# -- what happens: the server session ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerFound:
    """A server session is there for an exchange that has none."""

    server: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class ServerLost:
    """A server session is gone; ``crashed``: without a goodbye."""

    server: str
    incarnation: int
    crashed: bool
    crashes_max: int


@dataclass(frozen=True, slots=True)
class Responded:
    """A response, and the server's restart data with it (None: they stay)."""

    server: str
    assignment: int
    op: int
    number: int
    restart: bytes | None = None


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The server's restart data in the middle of request ``number``."""

    server: str
    assignment: int
    op: int
    number: int
    restart: bytes


@dataclass(frozen=True, slots=True)
class Begun:
    """A careful server session is about to perform request ``number``."""

    server: str
    assignment: int
    op: int
    number: int


# -- what happens: the manager and its operators -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ManagerStarted:
    """The rows were taken over by another host."""


@dataclass(frozen=True, slots=True)
class RestartOrdered:
    """An operator wants both sides restarted; ``programs``: as new processes."""

    programs: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """An operator cancels the exchange, or its time is over."""

    outcome: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The retention of an exchange that is over has passed."""


ClientEvent: TypeAlias = ClientOpened | ClientAsked | Submitted | Acknowledged | Finished
ServerEvent: TypeAlias = ServerFound | ServerLost | Responded | Checkpointed | Begun
ManagerEvent: TypeAlias = ManagerStarted | RestartOrdered | Closed | Forgotten
Event: TypeAlias = ClientEvent | ServerEvent | ManagerEvent


# -- what the manager does ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RestartClient:
    """Send the client its restart data, the positions and both queues."""

    cause: str


@dataclass(frozen=True, slots=True)
class RestartServer:
    """Send the server session its restart data, the positions and both queues."""

    cause: str


@dataclass(frozen=True, slots=True)
class TellPositions:
    """Tell the client how far everything is: what it waits for is stored."""


@dataclass(frozen=True, slots=True)
class RefuseClient:
    """Say which operation did not take effect, and why: the next one has to be ``expected``."""

    incarnation: int
    op: int
    reason: str
    expected: int


@dataclass(frozen=True, slots=True)
class FenceClient:
    """Tell a process of the client that a younger one has the exchange."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class CloseClient:
    """Tell the client that the exchange is over."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """Keep the request that has just come, and send it to the server session if there is one."""

    number: int
    send: bool


@dataclass(frozen=True, slots=True)
class StoreResponse:
    """Keep the response that has just come in place of its request, and send it to the client."""

    number: int


@dataclass(frozen=True, slots=True)
class FailRequest:
    """Answer a request for a server session that cannot: it stays unperformed."""

    number: int
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class DropResponses:
    """Forget responses ``first … last``."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class DropQueues:
    """Forget every queued message."""

    requests: tuple[int, int]
    responses: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FindServer:
    """Choose a server session that is present, by the backup order; none may be."""

    prefer: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Tell a server session that this assignment is not, or no longer, its own."""

    server: str
    assignment: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartPrograms:
    """Have the host supervisors of both sides start their programs anew."""


@dataclass(frozen=True, slots=True)
class Note:
    """Publish an event; ``fields`` are pairs."""

    event: str
    fields: tuple[tuple[str, str | int], ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete the row."""


Effect: TypeAlias = (
    RestartClient
    | RestartServer
    | TellPositions
    | RefuseClient
    | FenceClient
    | CloseClient
    | StoreRequest
    | StoreResponse
    | FailRequest
    | DropResponses
    | DropQueues
    | FindServer
    | Release
    | StartPrograms
    | Note
    | Forget
)


@dataclass(frozen=True, slots=True)
class Step:
    """The new state, and what the shell does for it, in this order."""

    exchange: Exchange
    effects: tuple[Effect, ...] = ()

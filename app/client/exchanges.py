"""Exchanges, on the client computer and on the server computer: see :class:`ClientSession` and :class:`ServerSession`.

::

    with ClientSession("localhost:9092", exchange="sim-42", client="laptop-7") as session:
        number = session.submit({"seed": 1}, restart={"step": 1})
        response = session.receive(timeout=30)
        session.acknowledge(response.number, restart={"step": 2})
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

from app.client.exchanges_conversation import KEEP, Conversation, Request, Response, Restart
from app.client.exchanges_server import ServerSession
from app.errors import ExchangeClosedError, UnavailableError
from app.protocol.exchange_model import WINDOW_MAX
from app.protocol.exchange_records import valid_name
from app.settings import Settings, load

__all__ = ["KEEP", "ClientSession", "Request", "Response", "Restart", "ServerSession"]


class ClientSession:
    """One exchange, as its client sees it: new, or restarted from its manager. Thread-safe.

    Every method that changes something returns when the manager has it, stored and backed up by Kafka; the methods that
    end in ``_nowait`` return a future of that, which asyncio awaits with ``asyncio.wrap_future``.

    Args:
        bootstrap: Kafka's bootstrap servers; empty: those of the settings.
        exchange: its name: 1 to 200 characters without control characters.
        client: the client's name, the same rule.
        namespace: as the workers have it; None: that of the settings, ``holdfast`` by default.
        window: how many requests may be submitted and not acknowledged; None: as it is, or 8.
        deadline: seconds after which an exchange that is not finished expires; None: as it is, or never.
        timeout: seconds to wait for a manager in every call that takes no time of its own.
        on_restart: called with every :class:`Restart`, in a thread of the connection.
        settings: a whole settings object instead of ``more``.
        more: any setting by its name; what is not given comes from environment variables ``HOLDFAST_*``.

    Raises:
        BrokerUnreachableError: no broker answers.
        ConfigurationError: a setting is wrong, or the namespace has no topics.
        ExchangeClosedError: the exchange is over.
        FencedError: a younger process has opened the exchange at the same time.
        TimeoutError: no manager answers.
    """

    def __init__(
        self,
        bootstrap: str = "",
        exchange: str = "",
        client: str = "",
        namespace: str | None = None,
        *,
        window: int | None = None,
        deadline: float | None = None,
        timeout: float = 30.0,
        on_restart: Callable[[Restart], None] | None = None,
        settings: Settings | None = None,
        **more: object,
    ) -> None:
        for what, name in (("exchange", exchange), ("client", client)):
            if not valid_name(name):
                raise ValueError(f"{what} {name!r} is no name: use 1 to 200 characters without control characters")
        if window is not None and not 1 <= window <= WINDOW_MAX:
            raise ValueError(f"window {window}: use a number from 1 to {WINDOW_MAX}")
        given = {"bootstrap": bootstrap or None, "namespace": namespace, **more}
        self._settings = settings or load(None, given)[0]
        self.exchange: Final = exchange
        self.client: Final = client
        self._talk = Conversation(self._settings, exchange, timeout, on_restart)
        self._talk.open(client, window, deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- what the program does --------------------------------------------------------------------------------------

    @property
    def restart(self) -> Any:
        """The last restart data that the manager has of this side; None when the exchange is new."""
        with self._talk.changed:
            return self._talk.restart

    @property
    def requests(self) -> tuple[Request, ...]:
        """The request queue: what is submitted and not answered."""
        with self._talk.changed:
            found = self._talk.requests
            return tuple(Request(number, found[number]) for number in sorted(found))

    @property
    def responses(self) -> tuple[Response, ...]:
        """The response queue: what is answered and not acknowledged."""
        with self._talk.changed:
            found = self._talk.responses
            return tuple(found[number] for number in sorted(found))

    @property
    def window(self) -> int:
        """How many requests may be submitted and not acknowledged."""
        with self._talk.changed:
            return self._talk.window

    def submit(self, request: Any, restart: Any = KEEP, timeout: float | None = None) -> int:
        """Submit a request and return its number, when the manager has it and the restart data.

        A closed window is waited for: another thread may acknowledge.

        Raises:
            ValueError: not JSON, or too large.
            TimeoutError: the window stays closed, or no manager answers; the request may have been submitted.
            ExchangeClosedError, FencedError: see the class.
        """
        talk, until = self._talk, self._until(timeout)
        value, data = talk.encode(request), talk.encode_restart(restart)
        with talk.changed:
            while (future := talk.submit(request, value, restart, data)) is None:
                if not talk.changed.wait(until - time.monotonic()):
                    raise TimeoutError(
                        f"the window of {talk.window} requests of exchange {self.exchange} stays closed: "
                        "acknowledge responses"
                    )
        return talk.result(future, until)

    def submit_nowait(self, request: Any, restart: Any = KEEP) -> "Future[int]":
        """Submit a request; the future of its number is done when the manager has it.

        Raises:
            UnavailableError: the window is closed.
            ValueError, ExchangeClosedError, FencedError: as :meth:`submit`.
        """
        talk = self._talk
        with talk.changed:
            future = talk.submit(request, talk.encode(request), restart, talk.encode_restart(restart))
        if future is None:
            raise UnavailableError(f"the window of exchange {self.exchange} is closed", retry_after_s=1)
        return future

    def receive(self, timeout: float | None = None) -> Response:
        """Wait for the oldest response that is not acknowledged; the same one until it is.

        Raises:
            TimeoutError: it has not come.
            ExchangeClosedError, FencedError: see the class.
        """
        talk = self._talk
        with talk.changed:
            talk.changed.wait_for(lambda: talk.oldest() is not None or talk.over, timeout)
            talk.check()
            found = talk.oldest()
            if found is None:
                raise TimeoutError(f"no response in exchange {self.exchange} within {timeout:g} s")
            return found

    def expect(self) -> "Future[Response]":
        """Return the future of what :meth:`receive` returns. Cancel a future that is not needed any more."""
        return self._talk.expect()

    def acknowledge(self, number: int, restart: Any = KEEP, timeout: float | None = None) -> None:
        """Drop the responses up to ``number`` and replace the restart data, in one step.

        Raises:
            ValueError: there is no such response yet, or the restart data are too large or not JSON.
            TimeoutError, ExchangeClosedError, FencedError: as :meth:`submit`.
        """
        until = self._until(timeout)
        self._talk.result(self._talk.acknowledge(number, restart), until)

    def acknowledge_nowait(self, number: int, restart: Any = KEEP) -> "Future[int]":
        """As :meth:`acknowledge`; the future of ``number`` is done when the manager has it."""
        return self._talk.acknowledge(number, restart)

    def finish(self, timeout: float | None = None) -> None:
        """End the exchange: whatever is queued is dropped. Nothing can be added to it any more."""
        until = self._until(timeout)
        try:
            self._talk.result(self._talk.finish(), until)
        except ExchangeClosedError as error:
            if error.outcome != "finished":
                raise
        self.close()

    def close(self) -> None:
        """Let go of the exchange and leave it open: whoever opens it next goes on from here."""
        self._talk.close()

    def _until(self, timeout: float | None) -> float:
        return time.monotonic() + (self._talk.timeout if timeout is None else timeout)

"""Every error that Holdfast raises on purpose, split by what the catcher should do.

* :exc:`HoldfastError`: never raised itself; exit code 1

  * :exc:`ConfigurationError`: the operator must change something before a new start; exit code 2
  * :exc:`BrokerUnreachableError`: the Kafka cluster does not answer; exit code 3
  * :exc:`FencedError`: a younger owner exists; drop the work, never retry it
  * :exc:`ExchangeClosedError`: the exchange is over; nothing can be added to it
  * :exc:`ProtocolError`: never raised itself

    * :exc:`LocalProtocolError`: this program broke a protocol; a bug here
    * :exc:`PeerProtocolError`: a record that another program wrote breaks a protocol; set the record aside

  * :exc:`UnavailableError`: nothing is wrong for good; wait, then try again
  * :exc:`RecordError`: a record that is no task; it becomes a dead letter
  * :exc:`StorageError`: the storage of transfers refuses; nothing that was confirmed is lost

The text of every error is one line that says what is wrong and what to do.
What a catcher needs is in attributes.
"""

from typing import ClassVar


class HoldfastError(Exception):
    """The root: whoever catches it catches everything that Holdfast raises on purpose."""

    exit_code: ClassVar[int] = 1
    """What the command line answers with when this error ends a command."""


class ConfigurationError(HoldfastError):
    """A setting, a directory or a missing program prevents the start; only the operator can mend it."""

    exit_code = 2


class BrokerUnreachableError(HoldfastError):
    """No broker of the bootstrap list answers.

    Args:
        bootstrap: the addresses that were tried, ``host:port`` separated by commas.
        detail: what the client library said, in one line; empty when it said nothing.
        advice: what to do.
    """

    exit_code = 3

    def __init__(
        self,
        bootstrap: str,
        detail: str = "",
        *,
        advice: str = "start it, or set HOLDFAST_BOOTSTRAP to one that runs",
    ) -> None:
        super().__init__(bootstrap, detail, advice)
        self.bootstrap = bootstrap
        self.detail = detail
        self.advice = advice

    def __str__(self) -> str:
        reason = f" ({self.detail})" if self.detail else ""
        return f"no Kafka broker answers at {self.bootstrap}{reason}: {self.advice}"


class FencedError(HoldfastError):
    """A younger owner holds the resource; what this process was doing with it must not take effect.

    Args:
        resource: what was taken over, for example ``worker w1`` or ``connection device-7``.
        ours: the generation, epoch or instance number that this process held.
        theirs: the younger number.
    """

    def __init__(self, resource: str, *, ours: int, theirs: int) -> None:
        super().__init__(resource, ours, theirs)
        self.resource = resource
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return f"{self.resource} was taken over ({self.theirs}, ours was {self.ours}): leave it to its new owner"


class ExchangeClosedError(HoldfastError):
    """An exchange is over: finished, cancelled or expired; or its manager refuses to go on with it.

    Args:
        exchange: its name.
        outcome: ``finished``, ``cancelled``, ``expired``, or the reason of the refusal.
    """

    def __init__(self, exchange: str, outcome: str) -> None:
        super().__init__(exchange, outcome)
        self.exchange = exchange
        self.outcome = outcome

    def __str__(self) -> str:
        return f"exchange {self.exchange} is over ({self.outcome}): open one with another name"


class ProtocolError(HoldfastError):
    """Somebody broke a protocol. Raise one of the two subclasses, which say who."""

    def __init__(self, *args: object) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or PeerProtocolError, which say whose fault it is")
        super().__init__(*args)


class LocalProtocolError(ProtocolError):
    """This program did what the protocol does not allow: a bug here, stop the unit of work."""


class PeerProtocolError(ProtocolError):
    """A record written by another program breaks the protocol: set the record aside and go on."""


class UnavailableError(HoldfastError):
    """Not now: a partition without a host, a rebalance, a full queue.

    Args:
        reason: what is missing, in a few words.
        retry_after_s: seconds after which a new attempt makes sense.
    """

    def __init__(self, reason: str, *, retry_after_s: float) -> None:
        super().__init__(reason, retry_after_s)
        self.reason = reason
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.reason}: try again in {self.retry_after_s:g} s"


class RecordError(HoldfastError):
    """A record of ``tasks`` that is no task.

    Args:
        reason: why not, in one line; it becomes the dead letter's ``message`` header.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StorageError(HoldfastError):
    """The storage of transfers refuses a write or a read. What it confirmed before stays confirmed.

    Args:
        doing: what was to be done, in a few words.
        reason: what it said, in one line.
        full: there is no room left.
    """

    def __init__(self, doing: str, reason: str, *, full: bool = False) -> None:
        super().__init__(doing, reason)
        self.doing = doing
        self.reason = reason
        self.full = full

    def __str__(self) -> str:
        advice = "free some space" if self.full else "see HOLDFAST_STORAGE"
        return f"the storage cannot {self.doing} ({self.reason}): {advice}"

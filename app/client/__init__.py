"""The client: tasks, results and exchanges on confluent-kafka alone.

See :class:`app.client.tasks.Client` for tasks and their results, :mod:`app.client.exchanges` for exchanges.
"""

from app.client.exchanges import ClientSession, ServerSession
from app.client.tasks import Client, Sent
from app.errors import ExchangeClosedError, FencedError

__all__ = ["Client", "ClientSession", "ExchangeClosedError", "FencedError", "Sent", "ServerSession"]

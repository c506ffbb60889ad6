"""The client: tasks, results and exchanges on confluent-kafka alone.

See :class:`app.client.tasks.Client` for tasks and their results.
"""

from app.client.tasks import Client, Sent

__all__ = ["Client", "Sent"]

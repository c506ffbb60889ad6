"""The names of all metrics, with kind, labels and meaning: what ``/metrics`` may say, and docs/metrics.md explains.

Prometheus' conventions: base units (seconds, bytes), counters end in ``_total``, the unit stands last. Counters begin
at 0 with the worker; what comes out of it is counted once it is committed.
"""

from enum import Enum
from typing import Final, NamedTuple

PREFIX: Final = "holdfast_"


class Kind(Enum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(NamedTuple):
    """One metric; ``name`` is what a query says, of a histogram without ``_bucket``, ``_sum``, ``_count``."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

METRICS: Final = tuple(
    Metric(PREFIX + name, kind, tuple(labels.split()), meaning)
    for name, kind, labels, meaning in (
        # The worker and its group.
        ("worker_info", _G, "worker namespace version", "Always 1; says which worker this is"),
        ("ready", _G, "", "1 when all that the group gave to this worker is restored and served"),
        ("healthy", _G, "", "0 when there is something to do and nothing moves"),
        ("idle_seconds", _G, "", "Since a record was last handed to an agent"),
        (
            "places",
            _G,
            "kind state",
            "Places by kind and by what this worker holds of them",
        ),
        ("generations_total", _C, "", "Assignments by the group: how often places were distributed anew"),
        ("restored_places_total", _C, "", "Places whose rows were completed from the changelog"),
        ("restored_rows_total", _C, "", "Changelog records read for that"),
        ("restoring_seconds_total", _C, "", "Time from assignment to the last row, summed over the places"),
        ("standby_lag_records", _G, "place", "Changelog records that this worker's copy of a place is behind"),
        ("rows", _G, "table partition", "Rows of the tables served here; not with HOLDFAST_STORE=rocksdb"),
        # Records and units of work.
        ("lag_records", _G, "topic partition", "Records in the streams of places served here that are not done yet"),
        ("records_read_total", _C, "topic", "Records handed to agents; again those of an aborted unit"),
        ("records_written_total", _C, "topic", "Committed records"),
        ("delivery_seconds_total", _C, "topic", "Time that agents took for the records they were handed"),
        ("record_age_seconds", _H, "topic", "Age of the first record of a batch when its turn came"),
        ("units_total", _C, "outcome", "Units of work by outcome: committed, aborted, refused"),
        ("commit_seconds", _H, "", "From the seal of a unit to its commit"),
        ("unit_records", _H, "", "Records that a committed unit wrote"),
        # Tasks.
        ("results_total", _C, "status", "Results: done, failed"),
        ("dead_letters_total", _C, "error", "Dead letters by error; beyond 100 different ones: other"),
        ("waiting_tasks", _G, "server", "Tasks taken from a server's stream that may not run yet"),
        ("stale_hints_total", _C, "", "Tasks whose `server` was not the one they belong to"),
        ("misrouted_tasks_total", _C, "", "Tasks that a producer's partitioner put on the wrong router"),
        # Views.
        ("view", _G, "", "The number of the view that this worker knows"),
        ("server_up", _G, "server", "1 when the server is up in that view"),
        ("rehomed_rows_total", _C, "direction", "Rows that views took from servers hosted here (out) or brought (in)"),
        ("held_tasks_total", _C, "", "Tasks that waited because their session was on its way to a server hosted here"),
        (
            "misplaced_tasks_total",
            _C,
            "",
            "Tasks that came to a server where they do not belong; they were sent back",
        ),
        ("alignment_seconds", _H, "", "From a view's first marker at a server until its stream was in order again"),
        # Tenants that move.
        ("migrations", _G, "state", "Tenants of the routers served here that move now: copying, cutting, releasing"),
        ("migrations_total", _C, "outcome", "Migrations that have ended: succeeded, failed"),
        ("migration_pause_seconds", _H, "", "How long a tenant stood still in a migration"),
        ("migration_rows_total", _C, "", "Rows that were moved"),
        ("migration_bytes_total", _C, "", "Bytes that were moved"),
        ("copied_rows_total", _C, "direction", "Rows copied from servers hosted here (out) and to them (in)"),
        ("parked_tasks", _G, "", "Tasks parked by the routers served here"),
        (
            "parked_oldest_seconds",
            _G,
            "",
            "For how long the tenant that stands still longest has done so",
        ),
        ("tasks_parked_total", _C, "", "Tasks that were parked, of migrations that have ended"),
        (
            "tasks_redelayed_total",
            _C,
            "",
            "Delays of parked tasks that passed while their migration was on",
        ),
        # Transfers and exchanges.
        ("transfers_open", _G, "", "Connections of the owners served here whose message is not whole yet"),
        ("transfers_total", _C, "outcome", "Transfers: completed, failed, acknowledged"),
        ("transfer_bytes_total", _C, "", "Bytes of completed transfers"),
        ("exchanges_open", _G, "", "Exchanges of the managers served here that are not over"),
        ("exchange_mark_seconds", _G, "manager role", "Unix time of a manager's newest row: at its host, at a backup"),
        # Everything that is announced.
        ("events_total", _C, "event", "Records of `events` by name"),
    )
)

BY_NAME: Final = {metric.name: metric for metric in METRICS}

"""What a worker can tell about exchanges: those that it manages, and how far it follows others as their backup."""

from typing import Any, Final

from app.engine.engine import Engine
from app.engine.places import Place
from app.engine.table import Rows
from app.errors import UnavailableError
from app.protocol.exchange_model import Ended, Open
from app.protocol.exchange_records import valid_name
from app.protocol.murmur2 import partition_of
from tables import exchanges as table
from tables.exchanges import ExchangeRow

LISTED_MAX: Final = 10_000
KIND: Final = "exchange"


def manager_of(exchange: str, managers: int) -> int:
    """The number of the manager that an exchange belongs to."""
    return partition_of(exchange.encode(), managers)


def managers(engine: Engine) -> list[dict[str, Any]]:
    """Every manager with its host and its backups."""
    plan = engine.plan
    names = [place.name for place in engine.places.all.values() if place.kind.name == KIND]
    return [
        {
            "manager": number,
            "worker": plan.host.get(name),
            "url": plan.workers[plan.host[name]][0] if plan.host.get(name) in plan.workers else None,
            "backups": list(plan.standbys.get(name, ())),
        }
        for number, name in enumerate(names)
    ]


def local(engine: Engine) -> dict[str, Any]:
    """The exchanges that are managed here, and the marks of all managers whose rows are here."""
    found: list[dict[str, Any]] = []
    for place in list(engine.places.all.values()):
        if place.kind.name == KIND and place.running and table.NAME in place.rows:
            found += summaries(place)
    return {"exchanges": found[:LISTED_MAX], "marks": marks(engine), "truncated": len(found) > LISTED_MAX}


def marks(engine: Engine) -> dict[str, dict[str, Any]]:
    """By manager, how new the rows are that are here: of those that are managed here, and of those followed."""
    found: dict[str, dict[str, Any]] = {}
    for place in list(engine.places.all.values()):
        rows = place.rows.get(table.NAME) if place.kind.name == KIND else None
        if rows is not None:
            found[str(place.number)] = {
                "worker": engine.options.name,
                "hosts": place.running,
                "at_ms": mark(rows),
            }
    return found


def mark(rows: Rows) -> int | None:
    """When the newest committed change of a manager was made that these rows hold (its clock, milliseconds)."""
    row = rows.peek(table.MARK)
    return None if row is None else table.decode_mark(row).at_ms


def summaries(place: Place) -> list[dict[str, Any]]:
    """One object per exchange of a place, without restart data and bodies."""
    return [
        summary(key.decode(), place.number, table.decode(row))
        for key, row in place.rows[table.NAME].store.scan(b"")
        if key != table.MARK
    ]


def summary(name: str, manager: int, row: ExchangeRow) -> dict[str, Any]:
    """An exchange in few words: who takes part, how far it is, who waits for whom."""
    exchange = row.exchange
    last = exchange.last if isinstance(exchange, Ended) else exchange
    return {
        "exchange": name,
        "state": exchange.outcome if isinstance(exchange, Ended) else "open",
        "manager": manager,
        "client": last.client,
        "server": last.server or None,
        "submitted": last.submitted,
        "answered": last.answered,
        "acknowledged": last.acknowledged,
        "window": last.window,
        "waiting": waiting(exchange),
        "opened_ms": row.opened_ms,
        "changed_ms": row.changed_ms,
    }


def waiting(exchange: Open | Ended) -> str:
    """Who waits for whom, in words."""
    if isinstance(exchange, Ended):
        return f"over: {exchange.reason or exchange.outcome}"
    parts = []
    if exchange.answered < exchange.submitted:
        what = f"request {exchange.answered + 1} of {exchange.submitted}"
        parts.append(f"{exchange.client} for {exchange.server or 'a server session'}: {what}")
    if exchange.acknowledged < exchange.answered:
        what = f"response {exchange.acknowledged + 1} of {exchange.answered} to be acknowledged"
        parts.append(f"the manager for {exchange.client}: {what}")
    return "; ".join(parts) or f"{exchange.server or 'nobody'} for {exchange.client}: a request"


def show(engine: Engine, name: str) -> dict[str, Any] | None:
    """An exchange that is managed here, with restart data and both queues; None: there is none.

    Raises:
        UnavailableError: its manager is not here, or is still being restored.
    """
    count = sum(place.kind.name == KIND for place in engine.places.all.values())
    place = engine.places.all[f"{KIND}-{manager_of(name, count)}"]
    rows = place.rows.get(table.NAME)
    if not place.running or rows is None:
        text = f"manager {place.number} is not served by worker {engine.options.name} now"
        raise UnavailableError(text, retry_after_s=0.5)
    key = name.encode()
    row = rows.peek(key) if valid_name(name) else None
    if row is None:
        return None
    decoded, fields = table.decode(row), table.fields_of(row)
    exchange = decoded.exchange
    shown = summary(name, place.number, decoded)
    shown |= {field: fields[field] for field in ("incarnation", "assignment", "deadline_ms", "careful", "crashes")}
    shown |= {field: fields[field] for field in ("client_restart", "server_restart")}
    shown |= {"requests": [], "responses": []}
    if isinstance(exchange, Open):
        messages = place.rows[table.MESSAGES]
        for number in range(exchange.acknowledged + 1, exchange.submitted + 1):
            answered = number <= exchange.answered
            found = messages.peek(table.message_key(key, number))
            if found is not None:
                shown["responses" if answered else "requests"].append({"number": number, **table.decode_message(found)})
    return shown

"""The hash chain of a session: what its state must be, computed from ``tasks`` alone."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import orjson

from app.errors import RecordError
from app.observe.account import is_copy
from app.observe.reading import Config, end_offsets, headers_of, read
from app.records import parse_task
from app.topics import Names

Chains = dict[tuple[str, str], str]
"""The last link by tenant and session."""

CHAIN_TYPES = frozenset({"chain.link", "chain.async", "chain.blocking", "chain.retry"})


def link(before: str, payload: dict[str, Any]) -> str:
    """Return the next link: 16 hexadecimal digits over the link before it and the canonical payload."""
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256((before + canonical).encode()).hexdigest()[:16]


def expected(config: Config, namespace: str, *, deadline: float) -> Chains:
    """Compute every session's chain from ``tasks``: those of :data:`CHAIN_TYPES`, all of which succeed."""
    chains: Chains = {}
    topic = Names(namespace).tasks
    ends = end_offsets(config, [topic], deadline=deadline)
    for message in read(config, ends, {}, deadline=deadline):
        if is_copy(headers_of(message)):
            continue
        try:
            task = parse_task(message.key(), message.value())
        except RecordError:
            continue
        if task.type in CHAIN_TYPES:
            who = (task.tenant, task.session)
            chains[who] = link(chains.get(who, ""), task.payload)
    return chains


def from_results(config: Config, namespace: str, *, deadline: float) -> Chains:
    """Return the last link that each session's results show."""
    chains: Chains = {}
    topic = Names(namespace).results
    ends = end_offsets(config, [topic], deadline=deadline)
    for message in read(config, ends, {}, deadline=deadline):
        result = orjson.loads(message.value() or b"")
        if result["type"] in CHAIN_TYPES and result["status"] == "done":
            chains[result["tenant"], result["session"]] = result["result"]["h"]
    return chains


def from_rows(config: Config, namespace: str, *, deadline: float) -> Chains:
    """Return the link in each session's row, as its changelog has it."""
    return {who: state["h"] for who, state in rows(config, namespace, deadline=deadline) if "h" in state}


def rows(config: Config, namespace: str, *, deadline: float) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield the committed state of every session, of a tenant that has moved under its live epoch."""
    placed = latest(config, namespace, "placements", deadline=deadline)
    live = {tenant: orjson.loads(row)["epoch"] for (tenant, _), row in placed.items()}
    found: set[bytes] = set()
    for (key, _), value in latest(config, namespace, "sessions", deadline=deadline).items():
        tenant, epoch, session = key.split(b"\0")
        if int(epoch) == live.get(tenant, 0):
            assert key not in found, f"{key!r} lives at two servers"
            found.add(key)
            yield (tenant.decode(), session.decode()), orjson.loads(value)["s"]


def servers(config: Config, namespace: str) -> dict[tuple[str, str], int]:
    """The server that holds each session's row; moved tenants have others, under older epochs, for a while."""
    found: dict[tuple[str, str], int] = {}
    for key, server in latest(config, namespace, "sessions", deadline=time.monotonic() + 30):
        tenant, _, session = key.decode().split("\0")
        found[tenant, session] = server
    return found


def latest(config: Config, namespace: str, table: str, *, deadline: float) -> dict[tuple[bytes, int], bytes]:
    """The rows of a table by key and partition."""
    topic = Names(namespace).changelog(table)
    ends = end_offsets(config, [topic], deadline=deadline)
    latest: dict[tuple[bytes, int], bytes] = {}
    for message in read(config, ends, {}, deadline=deadline):
        where, value = (message.key() or b"", message.partition() or 0), message.value()
        if value is None:
            latest.pop(where, None)
        else:
            latest[where] = value
    return latest


def difference(one: Chains, other: Chains, limit: int = 5) -> list[str]:
    """Say where two sets of chains differ, in words; empty when they are equal."""
    wrong = sorted(who for who in one.keys() | other.keys() if one.get(who) != other.get(who))
    lines = [f"{' '.join(who)}: {one.get(who)} here, {other.get(who)} there" for who in wrong[:limit]]
    return [*lines, f"... {len(wrong)} sessions differ"] if len(wrong) > limit else lines

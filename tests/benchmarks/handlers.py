"""Handlers for benchmarks. Workers load this module by ``HOLDFAST_HANDLERS=app.samples,tests.benchmarks.handlers``."""

from typing import Any

from app.handlers import Session, handler

FILL_BYTES = 200


@handler("bench.fill")
def fill(session: Session[dict[str, Any]], payload: dict[str, Any]) -> int:
    """Count, in a state of about 200 bytes."""
    state = session.state
    count = state.get("count", 0) + 1
    text = f"{session.id}:{count}:"
    session.state = {"count": count, "fill": text + "x" * (FILL_BYTES - 22 - len(text))}
    return int(count)

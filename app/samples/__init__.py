"""Sample handlers, for the demo, the tutorial and first steps."""

import asyncio
import hashlib
from typing import Any

from app.handlers import Session, handler


@handler("cart.add")
def cart_add(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Put ``count`` items into the cart."""
    session.state["items"] = session.state.get("items", 0) + payload["count"]
    return {"items": session.state["items"]}


@handler("cart.checkout")
def cart_checkout(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Answer what was in the cart and empty it."""
    items = session.state.pop("items", 0)
    session.state["orders"] = session.state.get("orders", 0) + 1
    return {"items": items, "order": session.state["orders"]}


@handler("counter.add")
def counter_add(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Add ``amount`` to the session's total."""
    total = session.state["total"] = session.state.get("total", 0) + payload["amount"]
    return {"total": total}


@handler("chain.add")
def chain_add(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Hash ``value`` onto the chain of all values before it: the result tells any change of order."""
    link = f"{session.state.get('chain', '')}|{payload['value']}"
    session.state["chain"] = hashlib.sha256(link.encode()).hexdigest()[:16]
    return {"chain": session.state["chain"]}


@handler("echo")
def echo(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Answer the payload."""
    return payload


@handler("sleep")
async def sleep(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Take ``seconds``; other sessions go on meanwhile."""
    await asyncio.sleep(payload["seconds"])
    return {"slept": payload["seconds"]}


@handler("fail")
def fail(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Fail, with ``message`` as the reason."""
    raise RuntimeError(payload.get("message", "asked to fail"))

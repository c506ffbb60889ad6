"""Handlers for tests: ordered state, and every way in which a handler can misbehave.

Workers load this module by ``HOLDFAST_HANDLERS=app.samples,tests.support.handlers``.
"""

import asyncio
import ctypes
import os
import random
import time
from pathlib import Path
from typing import Any

from app.handlers import Retry, Session, handler
from tests.support.chain import link

Payload = dict[str, Any]
AnySession = Session[dict[str, Any]]


@handler("chain.link")
def chain_link(session: AnySession, payload: Payload) -> Payload:
    """Append the payload to a hash chain: any loss, doubling or swap changes every later link."""
    session.state["h"] = link(session.state.get("h", ""), payload)
    return {"h": session.state["h"]}


@handler("chain.async")
async def chain_async(session: AnySession, payload: Payload) -> Payload:
    await asyncio.sleep(payload.get("seconds", 0))
    return chain_link(session, payload)


@handler("chain.blocking", blocking=True)
def chain_blocking(session: AnySession, payload: Payload) -> Payload:
    time.sleep(payload.get("seconds", 0))
    return chain_link(session, payload)


@handler("chain.retry")
def chain_retry(session: AnySession, payload: Payload) -> Payload:
    """Ask once for another attempt: this task, and what follows in its session, waits."""
    if session.attempt == 1:
        raise Retry(after=payload.get("after", 0.3))
    return chain_link(session, payload)


@handler("raise")
def raise_error(session: AnySession, payload: Payload) -> None:
    session.state["touched"] = True
    raise ValueError(payload.get("message", "asked for"))


@handler("unserialisable")
def unserialisable(_session: AnySession, _payload: Payload) -> object:
    return object()


@handler("unserialisable.state")
def unserialisable_state(session: AnySession, _payload: Payload) -> None:
    session.state["it"] = object()


@handler("slow.async")
async def slow_async(session: AnySession, payload: Payload) -> Payload:
    await asyncio.sleep(payload["seconds"])
    return chain_link(session, payload)


@handler("slow.blocking", blocking=True)
def slow_blocking(session: AnySession, payload: Payload) -> Payload:
    time.sleep(payload["seconds"])
    return chain_link(session, payload)


@handler("slow.sync")
def slow_sync(session: AnySession, payload: Payload) -> Payload:
    time.sleep(payload["seconds"])
    return chain_link(session, payload)


@handler("gate")
def gate(_session: AnySession, payload: Payload) -> None:
    """Hold the worker up while the file is there; that it has begun says another one."""
    path = Path(payload["path"])
    path.with_suffix(".begun").touch()
    while path.exists():
        time.sleep(0.02)


@handler("gate.async")
async def gate_async(session: AnySession, payload: Payload) -> Payload:
    """Run while the file is there; a line in another one says that it has begun."""
    path = Path(payload["path"])
    with path.with_suffix(".begun").open("a") as file:
        file.write(f"{session.tenant}\n")
    while path.exists():  # noqa: ASYNC110, ASYNC240 - a test removes it.
        await asyncio.sleep(0.02)
    return {"server": session.server}


@handler("exit")
def exit_worker(_session: AnySession, _payload: Payload) -> None:
    os._exit(1)


@handler("quit")
def quit_worker(_session: AnySession, _payload: Payload) -> None:
    raise SystemExit(3)


@handler("segv")
def segfault(_session: AnySession, _payload: Payload) -> None:
    ctypes.string_at(0)


@handler("loop")
def loop(_session: AnySession, _payload: Payload) -> None:
    while True:
        pass


@handler("retry")
def retry(session: AnySession, payload: Payload) -> Payload:
    """Ask for another attempt until number ``until``."""
    session.state["touched"] = session.attempt
    if session.attempt < payload["until"]:
        raise Retry(after=payload.get("after", 0.1))
    return {"attempt": session.attempt, **chain_link(session, payload)}


@handler("big.state")
def big_state(session: AnySession, payload: Payload) -> Payload:
    # Chance, so that nothing makes it smaller on its way to the disk.
    content = random.Random(payload.get("seed", 0)).randbytes(payload["bytes"] // 2).hex()
    session.state["big"] = content
    return {"bytes": payload["bytes"]}


@handler("big.result")
def big_result(session: AnySession, payload: Payload) -> Payload:
    session.state["touched"] = True
    return {"big": "x" * payload["bytes"]}


@handler("send")
def send(session: AnySession, payload: Payload) -> Payload:
    """Append to the chain of another session."""
    session.send(payload["to"], "chain.link", payload["payload"], tenant=payload.get("tenant"))
    return chain_link(session, payload)


@handler("emit")
def emit(session: AnySession, payload: Payload) -> None:
    session.emit(payload["topic"], payload["value"], key=payload.get("key"))
    if payload.get("fail"):
        raise ValueError("after emit")


@handler("end")
def end(session: AnySession, _payload: Payload) -> None:
    session.end()

"""Handlers of the tests by hand: one that counts, and some that last until the test lets them end."""

import asyncio
import threading
from typing import Any

from app.handlers import Retry, Session


def add(session: Session[Any], payload: dict[str, Any]) -> dict[str, Any]:
    session.state["n"] = session.state.get("n", 0) + 1
    session.state["fill"] = payload.get("fill", "")
    return {"n": session.state["n"], "server": session.server}


class Slow:
    """Handlers that last until the test lets them end; each run is noted with its server."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.may_end = threading.Event()

    async def aside(self, session: Session[Any], payload: dict[str, Any]) -> dict[str, Any]:
        self.runs.append(session.server)
        await asyncio.to_thread(self.may_end.wait, 30)
        return add(session, payload)

    def blocking(self, session: Session[Any], payload: dict[str, Any]) -> dict[str, Any]:
        self.runs.append(session.server)
        self.may_end.wait(30)
        return add(session, payload)

    def again(self, session: Session[Any], payload: dict[str, Any]) -> dict[str, Any]:
        self.runs.append(session.server)
        if not self.may_end.is_set():
            raise Retry(after=0.5)
        return add(session, payload)

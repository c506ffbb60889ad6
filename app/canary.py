"""The handler that every worker has beside those of its users: it answers the canary and the drill.

A canary's task carries a number. The handler answers with the number before it, which it keeps in the session's state:
so an effect that is lost, or that happened twice, shows in the next answer, whatever the results say.
"""

from typing import Any, Final

from app.handlers import RESERVED, Handler, Session

TYPE: Final = f"{RESERVED}canary"

ASK: Final = 0
"""A task with this number changes nothing: it asks where the session stands."""


def answer(session: Session[dict[str, Any]], payload: dict[str, Any]) -> dict[str, Any]:
    """Keep ``number`` and ``run``; answer those of the task before."""
    before = {"previous": session.state.get("number", 0), "run": session.state.get("run", "")}
    if payload["number"] != ASK:
        session.state["number"], session.state["run"] = payload["number"], payload["run"]
    return before


HANDLERS: Final = {
    TYPE: Handler(TYPE, answer, blocking=False, asynchronous=False, state_model=None, payload_model=None),
}
"""What a worker adds to the handlers of its modules."""

"""The program on the client computer of the demo's exchange; it may be killed at any time, and is started again.

``python -m app.cli.demo_client EXCHANGE COUNT`` submits the numbers 1 to COUNT, sums the answers, and tells each step
on a line of JSON. Its restart data are how many answers it has and their sum.
"""

import json
import sys

from app.cli.lifeline import follow_parent
from app.client import ClientSession

_STDIN = 0


def main() -> None:
    """Take the exchange to its end, from wherever it stands."""
    follow_parent(_STDIN)
    exchange, count = sys.argv[1], int(sys.argv[2])
    with ClientSession(exchange=exchange, client="demo-laptop", window=4) as session:
        state = session.restart or {"answers": 0, "sum": 0}
        _tell(began_at=state["answers"])
        submitted = state["answers"] + len(session.responses) + len(session.requests)
        while state["answers"] < count:
            while submitted < min(count, state["answers"] + session.window):
                submitted += 1
                session.submit({"number": submitted})
            response = session.receive()
            state = {"answers": state["answers"] + 1, "sum": state["sum"] + response.body["square"]}
            session.acknowledge(response.number, restart=state)
            _tell(**state)
        session.finish()
    _tell(done=True, **state)


def _tell(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()

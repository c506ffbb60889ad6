"""The server session: computes one point of the sweep after the other, and saves how far it is.

holdfast exchange host --server hpc-1 -- python work.py hpc-1
"""

import sys
import time

from percolation import percolates

from app.client import ServerSession

SAVE_EVERY_S = 1.0


def work(point: dict[str, float], restart: dict[str, object] | None) -> tuple[object, object]:
    """Go on where the restart data say, if they are about this point; a response ends them."""
    begun = restart if restart and restart["point"] == point else {"point": point, "samples": 0, "hits": 0}
    samples, hits = int(str(begun["samples"])), int(str(begun["hits"]))
    saved = time.monotonic()
    while samples < point["samples"]:
        hits += percolates(point["probability"], int(point["size"]), f"{point['probability']}/{samples}")
        samples += 1
        if time.monotonic() - saved > SAVE_EVERY_S:
            session.checkpoint({"point": point, "samples": samples, "hits": hits})
            saved = time.monotonic()
    return {"fraction": hits / samples}, None


if __name__ == "__main__":
    session = ServerSession(server=sys.argv[1] if len(sys.argv) > 1 else "hpc-1", perform=work)
    session.run()

"""A program that takes a worker's place where only its process matters.

It writes the line that says it is ready and ends on SIGTERM. Its behaviour is chosen by its name: ``dies``
ends at once, ``silent`` is never ready, ``stubborn`` ignores SIGTERM.
"""

import argparse
import json
import os
import signal
import sys

from app.cli.lifeline import follow_parent


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    given = parser.parse_args()
    # Waited for below; a handler would run only when this thread wakes up, and any thread may take the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print(f"stand-in {given.name} starts", flush=True)
    follow_parent(given.lifeline_fd)
    if given.name.startswith("dies"):
        print("cannot go on: no luck today", file=sys.stderr, flush=True)
        return 7
    if not given.name.startswith("silent"):
        with os.fdopen(given.ready_fd, "w") as pipe:
            url = f"http://127.0.0.1:1/{os.environ.get('HOLDFAST_NAMESPACE', '')}"
            line = {"name": given.name, "pid": os.getpid(), "url": url, "state": "ready"}
            pipe.write(json.dumps(line) + "\n")
    while True:
        signal.sigwait({signal.SIGTERM})
        if not given.name.startswith("stubborn"):
            return 0


if __name__ == "__main__":
    sys.exit(main())

"""The client: a parameter sweep with a plot of its result. Run it cell by cell, or as a whole; kill it, run it again.

holdfast exchange host --client laptop --exchange percolation -- python sweep.py
"""

# %% What to compute
import os
import sys
from pathlib import Path

from app.client import ClientSession

POINTS, SIZE, SAMPLES = (int(number) for number in (*sys.argv[1:4], 31, 32, 400)[:3])
OUT = Path(sys.argv[4] if len(sys.argv) > 4 else "percolation.svg")

sweep = [
    {"probability": round(0.4 + 0.4 * number / (POINTS - 1), 4), "size": SIZE, "samples": SAMPLES}
    for number in range(POINTS)
]

# %% Compute it. The restart data are the results so far; requests and responses that are on their way, the manager has.
with ClientSession(exchange=os.environ.get("HOLDFAST_EXCHANGE") or "percolation", client="laptop") as session:
    results = session.restart or []
    submitted = len(results) + len(session.responses) + len(session.requests)
    while len(results) < len(sweep):
        while submitted < min(len(sweep), len(results) + session.window):
            session.submit(sweep[submitted])
            submitted += 1
        response = session.receive()
        if response.error is not None:
            sys.exit(f"point {response.number}: {response.error['message']}")
        results = [*results, response.body["fraction"]]
        session.acknowledge(response.number, restart=results)
        print(f"{sweep[len(results) - 1]['probability']:.3f}  {results[-1]:.3f}", flush=True)

    # %% Plot it: the share of grids that let water through, over the probability that a site is open.
    across = [40 + 520 * number / (len(sweep) - 1) for number in range(len(sweep))]
    line = " ".join(f"{x:.1f},{340 - 300 * share:.1f}" for x, share in zip(across, results, strict=True))
    dots = "".join(f'<circle cx="{point.split(",")[0]}" cy="{point.split(",")[1]}" r="3"/>' for point in line.split())
    OUT.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 380" font-family="sans-serif" font-size="13">'
        '<path d="M40 40V340H560" fill="none" stroke="#888"/>'
        f'<polyline points="{line}" fill="none" stroke="#06c" stroke-width="2"/><g fill="#06c">{dots}</g>'
        f'<text x="40" y="360">{sweep[0]["probability"]}</text>'
        f'<text x="535" y="360">{sweep[-1]["probability"]}</text>'
        '<text x="10" y="45">1</text><text x="10" y="345">0</text>'
        '<text x="220" y="374">probability of an open site</text>'
        f'<text x="180" y="25">Site percolation, {SIZE} by {SIZE}, {SAMPLES} grids a point</text></svg>\n'
    )

    # %% It is over: the manager may forget it.
    session.finish()

"""Interleaved runs: one round runs every engine once, so that what disturbs the machine disturbs them alike."""

from collections.abc import Callable, Iterator, Sequence

from tests.benchmarks.bench import Bench
from tests.benchmarks.measurement import Sample
from tests.benchmarks.peers.engines import OURS, Absent, Engine


def rounds(bench: Bench, engines: Sequence[Engine], run: Callable[[Engine], Sample]) -> Iterator[Sample]:
    """Yield a sample ``run`` for each engine and round, and one ``absent`` for each engine that cannot run.

    Each round begins with another engine: the first one finds a machine that has been idle, or the last one's dirt.
    Ours failing is an error; a peer that fails is absent from then on.
    """
    there = []
    for engine in engines:
        bench.say(f"{engine.name} is prepared")
        try:
            engine.prepare(bench.tools)
        except Absent as error:
            yield _absent(engine, error)
        else:
            there.append(engine)
    for number in range(bench.options.pairs):
        turn = number % len(there)
        for engine in [*there[turn:], *there[:turn]]:
            if engine not in there:
                continue
            bench.say(f"round {number + 1} of {bench.options.pairs}: {engine.name}")
            try:
                sample = run(engine)
            except (Absent, AssertionError) as error:
                if engine.key == OURS:
                    raise
                there.remove(engine)
                yield _absent(engine, error)
            else:
                # Runs of several invocations may lie together: the round is named by when it began.
                yield {"series": "run", "engine": engine.key, "round": f"{bench.scratch.name}-{number}", **sample}


def _absent(engine: Engine, error: BaseException) -> Sample:
    return {"series": "absent", "engine": engine.key, "why": " ".join(str(error).split())[:300]}

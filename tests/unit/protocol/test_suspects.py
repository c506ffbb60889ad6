"""Suspects: the table of decisions, the stored form, and a world of dying hosts."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import LocalProtocolError, PeerProtocolError
from app.protocol.suspects import (
    Announce,
    Condemn,
    Decision,
    Suspicion,
    Trust,
    about,
    carry,
    held_key,
    of_held,
    progress,
    stream_key,
    takeover,
    timed_out,
    waiting_key,
    withdraw,
)

GOLDEN = Path(__file__).parents[2] / "golden/suspicion-1.json"

TOGETHER = Suspicion(100, 150, crashes=1, alone=False)
ALONE = Suspicion(100, 150, crashes=2, alone=True)
GUILTY = Suspicion(100, 150, crashes=2, alone=True, running=False, condemned=True)
LATE = Suspicion(100, 150, crashes=1, alone=False, running=False, timed_out=120)

CASES: list[tuple[str, Suspicion | None, int, int, bool, Decision]] = [
    ("never died", None, 100, 150, False, Trust()),
    ("died with nothing to do", None, 100, 100, True, Trust()),
    ("first death", None, 100, 150, True, Announce(TOGETHER)),
    ("second death", TOGETHER, 100, 150, True, Announce(ALONE)),
    ("third death, alone", ALONE, 100, 150, True, Condemn(100, "HostDied", GUILTY)),
    ("death behind an old suspicion", ALONE, 150, 170, True, Announce(Suspicion(150, 170, 1, False))),
    ("left behind an old suspicion", ALONE, 150, 170, False, Trust()),
    ("died before it announced again", TOGETHER, 120, 170, True, Announce(Suspicion(120, 150, 1, False))),
    ("the same, alone", ALONE, 101, 170, True, Announce(Suspicion(101, 150, 2, True))),
    ("left while announced", ALONE, 100, 150, False, Announce(ALONE)),
    ("died after one that left", withdraw(ALONE), 100, 150, True, Announce(ALONE)),
    ("a suspicion ahead of the stream", TOGETHER, 90, 99, True, Announce(Suspicion(90, 99, 1, False))),
    ("timed out here", LATE, 120, 170, True, Condemn(120, "TaskTimeout", replace(LATE, offset=120))),
    ("condemned by a host that left", GUILTY, 100, 150, False, Condemn(100, "HostDied", GUILTY)),
    ("behind the condemned one", GUILTY, 101, 150, True, Announce(Suspicion(101, 150, 2, True))),
    ("timed out further on", LATE, 100, 170, True, Announce(Suspicion(100, 150, 1, False, True, 120))),
    ("timed out before", LATE, 121, 170, True, Announce(Suspicion(121, 150, 1, False, True, 120))),
]


@pytest.mark.parametrize(("previous", "committed", "limit", "died", "expected"), [c[1:] for c in CASES])
def test_takeover(previous: Suspicion | None, committed: int, limit: int, died: bool, expected: Decision) -> None:
    assert takeover(previous, committed, limit, died=died, max_crashes=3) == expected


def test_with_two_crashes_the_first_death_makes_records_run_alone() -> None:
    first = takeover(None, 5, 9, died=True, max_crashes=2)
    assert first == Announce(Suspicion(5, 9, crashes=1, alone=True))
    assert takeover(first.suspicion, 5, 9, died=True, max_crashes=2) == Condemn(
        5, "HostDied", Suspicion(5, 9, crashes=1, alone=True, running=False, condemned=True)
    )


def test_a_larger_max_crashes_of_a_later_host_gives_another_try() -> None:
    assert takeover(ALONE, 100, 150, died=True, max_crashes=5) == Announce(Suspicion(100, 150, 3, False))


def test_a_smaller_max_crashes_of_a_later_host_condemns_nobody_that_did_not_run_alone() -> None:
    together = Suspicion(100, 150, crashes=4, alone=False)
    assert takeover(together, 100, 150, died=True, max_crashes=3) == Announce(Suspicion(100, 150, 5, True))


def test_max_crashes_below_two_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError):
        takeover(None, 0, 1, died=True, max_crashes=1)


def test_progress_goes_on_until_the_limit() -> None:
    assert progress(TOGETHER, 130, max_crashes=3) == Announce(Suspicion(130, 150, 1, False))
    assert progress(ALONE, 149, max_crashes=3) == Announce(Suspicion(149, 150, 2, True))
    assert progress(ALONE, 150, max_crashes=3) == Trust()


def test_the_announced_records_end_at_the_limit_or_before_the_one_that_timed_out() -> None:
    assert Announce(TOGETHER).end == 150
    assert Announce(Suspicion(100, 150, 1, False, True, 120)).end == 120
    assert Announce(Suspicion(121, 150, 1, False, True, 120)).end == 150


def test_a_time_out_names_its_record_and_counts_against_no_other() -> None:
    assert timed_out(None, 100, 120) == Suspicion(100, 121, 0, False, False, 120)
    assert timed_out(TOGETHER, 100, 120) == Suspicion(100, 150, 1, False, False, 120)
    assert timed_out(TOGETHER, 160, 165) == Suspicion(160, 166, 0, False, False, 165)
    behind = takeover(timed_out(None, 100, 120), 100, 150, died=True, max_crashes=3)
    assert behind == Announce(Suspicion(100, 121, 0, False, True, 120))
    assert progress(behind.suspicion, 120, max_crashes=3) == Condemn(
        120, "TaskTimeout", Suspicion(120, 121, 0, False, False, 120)
    )


def test_a_record_that_runs_on_as_a_waiting_task_keeps_its_count() -> None:
    carried = carry(TOGETHER, 17)
    assert carried == Suspicion(17, 18, crashes=1, alone=False)
    second = takeover(carried, 17, 18, died=True, max_crashes=3)
    assert second == Announce(Suspicion(17, 18, crashes=2, alone=True))
    assert progress(second.suspicion, 18, max_crashes=3) == Trust()


def test_keys() -> None:
    assert stream_key(3) == b"server/3"
    assert waiting_key(3, b"acme\x00s", 17) == b"server/3/61636d650073/17"
    assert held_key(3, 1, 5) == b"server/3/held/1/5"


def test_what_stands_about_held_tasks_is_told_from_the_rest() -> None:
    keys = [stream_key(3), waiting_key(3, b"held", 1), held_key(3, 0, 1), held_key(3, 1, 1), held_key(33, 0, 1)]
    found = dict.fromkeys(keys, b"x")
    assert list(about(3, found)) == keys[:4]
    assert list(of_held(3, found)) == keys[2:4]


def test_the_stored_form_is_the_released_one() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for value, suspicion in zip(golden, (TOGETHER, withdraw(ALONE), LATE, GUILTY), strict=True):
        assert Suspicion.decode(json.dumps(value).encode()) == suspicion
        assert json.loads(suspicion.encode()) == value


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"{}", b'{"v": 2}', b'{"v": 1, "offset": 3}'])
def test_what_is_no_suspicion_is_refused(value: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        Suspicion.decode(value)


Kind = Literal["innocent", "poison", "hang"]


@dataclass
class Task:
    """A record, and what the world knows of it that the core does not."""

    kind: Kind
    suspected: int = 0  # Dead hosts in a row at whose death it was within a unit of the committed offset.
    alone_deaths: int = 0  # Dead hosts that ran it alone.
    killed: int = 0
    performed: int = 0
    ended: str = ""


@dataclass
class Stream:
    tasks: list[Task]
    committed: int = 0
    stored: bytes | None = None
    announced: Suspicion | None = None
    decided: Decision | None = None
    died: bool = False
    touched: set[int] = field(default_factory=set)  # What the host performs now, uncommitted.


class Host(RuleBasedStateMachine):
    """Two servers' streams on one worker at a time, which performs, dies, is killed, leaves, and is followed.

    The rules break each action where a death can come between: decide, announce, perform, commit.
    """

    unit = 3

    @initialize(
        max_crashes=st.integers(2, 4),
        kinds=st.lists(
            st.lists(st.sampled_from(["innocent", "innocent", "innocent", "poison", "hang"]), max_size=7),
            min_size=2,
            max_size=2,
        ),
    )
    def begin(self, max_crashes: int, kinds: list[list[Kind]]) -> None:
        self.max_crashes = max_crashes
        self.streams = [Stream([Task(kind) for kind in stream]) for stream in kinds]
        self.self_ended = 0

    def limit(self, stream: Stream) -> int:
        return min(len(stream.tasks), stream.committed + self.unit)

    @rule(which=st.integers(0, 1), at=st.integers(0, 2), count=st.integers(1, 3), steps=st.integers(1, 4))
    def advance(self, which: int, at: int, count: int, steps: int) -> None:
        """Go the next steps of the host, whatever they are: so that a history goes deep before a kill."""
        for _ in range(steps):
            before = self.shape()
            for act in (self.decide, self.announce):
                for one in (which, 1 - which):
                    if self.shape() == before:
                        act(one)
            if self.shape() == before:
                self.perform(which, at)
            if self.shape() == before:
                self.commit(which, count)

    def shape(self) -> list[object]:
        """What a step changes."""
        return [(s.committed, s.stored, s.announced, s.decided, len(s.touched)) for s in self.streams]

    def decide(self, which: int) -> None:
        stream = self.streams[which]
        if stream.decided is None:
            previous = None if stream.stored is None else Suspicion.decode(stream.stored)
            stream.decided = takeover(
                previous, stream.committed, self.limit(stream), died=stream.died, max_crashes=self.max_crashes
            )

    def alone(self) -> Stream | None:
        """The stream whose record runs alone, so that nothing else of the worker may run."""
        for stream in self.streams:
            if isinstance(stream.decided, Announce) and stream.decided.suspicion.alone:
                return stream
        return None

    def announce(self, which: int) -> None:
        stream = self.streams[which]
        may = self.alone() in (None, stream) and all(s.decided is not None for s in self.streams)
        if self.alone() is stream:  # The worker first finishes what it has begun.
            may = may and not any(other.touched for other in self.streams if other is not stream)
        if may and isinstance(stream.decided, Announce) and stream.announced is None:
            stream.announced = stream.decided.suspicion
            stream.stored = stream.announced.encode()

    def perform(self, which: int, at: int) -> None:
        """Perform any record of the unit: handlers of different sessions have no order."""
        stream = self.streams[which]
        offset = stream.committed + at
        alone = self.alone()
        if any(s.decided is None for s in self.streams):
            return
        if alone not in (None, stream) and not (alone.announced is None and stream.touched):
            return  # Only what was begun before the other record is alone may be finished.
        if offset >= self.end(stream) or offset in stream.touched:
            return
        stream.touched.add(offset)
        task = stream.tasks[offset]
        if task.kind == "poison":
            task.killed += 1
            self.die()
        elif task.kind == "hang":
            previous = None if stream.stored is None else Suspicion.decode(stream.stored)
            stream.stored = timed_out(previous, stream.committed, offset).encode()
            self.self_ended += 1
            task.killed += 1
            self.die()

    def end(self, stream: Stream) -> int:
        match stream.decided:
            case Trust():
                return self.limit(stream)
            case Announce(suspicion) as announce if stream.announced is not None:
                return stream.committed + 1 if suspicion.alone else min(announce.end, self.limit(stream))
            case _:
                return stream.committed

    def commit(self, which: int, count: int) -> None:
        """Commit what was performed without a gap, or a condemned record; announced ones all or none."""
        stream = self.streams[which]
        if isinstance(stream.decided, Condemn):
            stream.stored = stream.decided.suspicion.encode()
            self.condemn(stream, stream.decided)
        if stream.announced is not None:
            begun = len(stream.touched)
            whole = stream.touched == set(range(stream.committed, stream.committed + begun))
            count = begun if whole else 0
        while count and stream.committed in stream.touched:
            stream.touched.discard(stream.committed)
            task = stream.tasks[stream.committed]
            task.performed += 1
            task.ended = "done"
            stream.committed += 1
            count -= 1
            if stream.announced is not None and not stream.touched:
                stream.decided = progress(stream.announced, stream.committed, max_crashes=self.max_crashes)
                stream.announced = None

    def condemn(self, stream: Stream, condemned: Condemn) -> None:
        assert condemned.offset == stream.committed
        task = stream.tasks[stream.committed]
        if condemned.reason == "HostDied":
            assert task.suspected >= self.max_crashes
            assert task.alone_deaths >= 1
        else:
            assert task.kind == "hang"
        assert stream.stored is not None
        task.ended = condemned.reason
        stream.committed += 1
        before = Suspicion.decode(stream.stored)
        stream.decided = progress(before, stream.committed, max_crashes=self.max_crashes)

    def die(self) -> None:
        for stream in self.streams:
            for task in stream.tasks[stream.committed : self.limit(stream)]:
                task.suspected += 1
            if stream.announced is not None and stream.announced.alone:
                stream.tasks[stream.committed].alone_deaths += 1
            stream.decided, stream.announced, stream.touched, stream.died = None, None, set(), True

    @rule()
    def kill(self) -> None:
        self.die()

    @rule()
    def leave(self) -> None:
        for stream in self.streams:
            if isinstance(stream.decided, Announce | Condemn):
                stream.stored = withdraw(stream.decided.suspicion).encode()
            if stream.decided is not None:  # Who has not asked does not host yet.
                stream.died = False
            stream.decided, stream.announced, stream.touched = None, None, set()

    @precondition(lambda self: all(isinstance(s.decided, Trust) for s in self.streams))
    @rule(which=st.integers(0, 1), kind=st.sampled_from(["innocent", "poison"]))
    def produce(self, which: int, kind: Kind) -> None:
        self.streams[which].tasks.append(Task(kind))

    @invariant()
    def bounded(self) -> None:
        for stream in getattr(self, "streams", ()):
            for task in stream.tasks:
                assert task.performed <= 1
                assert task.killed <= (self.max_crashes if task.kind == "poison" else 1 + len(stream.tasks))

    def teardown(self) -> None:
        """From here on nobody kills from outside: everything ends, each task once, and innocents are done."""
        steps = 0
        while any(stream.committed < len(stream.tasks) for stream in getattr(self, "streams", ())):
            steps += 1
            assert steps < 300, "it does not end"
            for which in (0, 1):
                self.decide(which)
            for which in (0, 1):
                self.announce(which)
                for at in range(self.unit):
                    self.perform(which, at)
                self.commit(which, self.unit)
        self.bounded()
        for stream in getattr(self, "streams", ()):
            assert all(task.ended for task in stream.tasks)
            assert all(task.performed == (task.ended == "done") for task in stream.tasks)


TestHosts = Host.TestCase
TestHosts.settings = settings(max_examples=200, stateful_step_count=60)


def test_one_poisonous_task_among_innocent_ones_is_the_only_one_condemned() -> None:
    """Without kills from outside the culprit is found by ``max_crashes`` dead hosts, whatever its place."""
    for max_crashes in (2, 3, 4):
        for place in range(7):
            world = Host()
            kinds: list[Kind] = ["innocent"] * 7
            kinds[place] = "poison"
            world.max_crashes, world.self_ended = max_crashes, 0
            world.streams = [Stream([Task(kind) for kind in kinds]), Stream([Task("innocent")] * 1)]
            world.teardown()
            ended = [task.ended for task in world.streams[0].tasks]
            assert ended == ["HostDied" if n == place else "done" for n in range(7)]
            assert world.streams[0].tasks[place].killed == max_crashes

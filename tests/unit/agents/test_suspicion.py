"""Vigilance: what it leaves in ``suspects``."""

from typing import Any, cast

from agents.suspicion import Vigilance
from app.protocol import suspects
from app.protocol.suspects import Suspicion
from tests.unit.agents.workbench import Suspects

STREAM = suspects.stream_key(0)
SESSION = b"acme\x000\x00s"
WAITING = suspects.waiting_key(0, SESSION, 1)


def vigilance(topic: Suspects, *, died: bool, committed: int = 5, end: int = 9, max_crashes: int = 2) -> Vigilance:
    return Vigilance(
        cast("Any", topic),
        server=0,
        committed=committed,
        end=end,
        died=died,
        max_crashes=max_crashes,
        found=dict(topic.standing),
    )


def stands(topic: Suspects) -> dict[bytes, Suspicion]:
    return {key: Suspicion.decode(value) for key, value in topic.standing.items()}


def test_a_stream_is_announced_once_and_forgotten_when_it_is_trusted() -> None:
    topic = Suspects()
    one = vigilance(topic, died=True, max_crashes=3)
    assert one.begin() is None
    assert stands(topic) == {STREAM: Suspicion(5, 9, 1, alone=False)}
    topic.reachable = False  # nothing is written again
    assert one.begin() is None
    one.committed(7)
    topic.reachable = True
    assert one.begin() is None
    assert stands(topic) == {STREAM: Suspicion(7, 9, 1, alone=False)}
    one.committed(9)
    assert not one.active
    assert topic.standing == {}


def test_a_condemnation_stands_when_the_server_moves_on_without_a_death() -> None:
    """Else the next host would run the record again."""
    topic = Suspects()
    assert vigilance(topic, died=True).begin() is None
    condemning = vigilance(topic, died=True)
    assert condemning.condemns
    left = condemning.withdraw()
    assert Suspicion.decode(left[STREAM]).condemned
    assert left == topic.standing
    assert vigilance(topic, died=False).begin() is not None


def test_what_was_announced_is_withdrawn() -> None:
    topic = Suspects()
    leaving = vigilance(topic, died=True)
    leaving.begin()
    assert isinstance(leaving.begin_waiting(SESSION, 1), Suspicion)
    left = leaving.withdraw([(SESSION, 2)])
    assert left == topic.standing
    assert {key: (found.crashes, found.running) for key, found in stands(topic).items()} == {
        STREAM: (1, False),
        WAITING: (1, False),
        suspects.waiting_key(0, SESSION, 2): (1, False),
    }


def test_withdrawing_does_not_wait_for_a_broker_that_is_away() -> None:
    topic = Suspects()
    leaving = vigilance(topic, died=True)
    topic.reachable = False
    assert list(leaving.withdraw([(SESSION, 1)])) == [STREAM, WAITING]


def test_a_waiting_task_that_is_gone_leaves_no_suspicion_to_the_next_of_its_number() -> None:
    topic = Suspects()
    gone, here = suspects.waiting_key(0, SESSION, 1), suspects.waiting_key(0, SESSION, 2)
    standing = Suspicion(1, 2, 1, alone=True).encode()
    topic.standing = {gone: standing, here: standing}
    one = vigilance(topic, died=False)
    one.keep_waiting([(SESSION, 2)])
    assert topic.standing.keys() == {here}
    assert not one.waiting_suspected(SESSION, 1)
    assert one.waiting_suspected(SESSION, 2)


def test_a_task_that_goes_on_waiting_takes_its_suspicion_along() -> None:
    topic = Suspects()
    one = vigilance(topic, died=True)
    one.begin()
    one.carry_over(SESSION, 1)
    assert stands(topic)[WAITING] == Suspicion(1, 2, 1, alone=True)
    one.ended_waiting(SESSION, 1)
    assert topic.standing.keys() == {STREAM}


def test_a_handler_that_hangs_is_written_down() -> None:
    topic = Suspects()
    one = vigilance(topic, died=False)
    one.performing = lambda: 7
    one.timed_out(SESSION, 0)
    one.timed_out(SESSION, 1)
    assert stands(topic)[STREAM] == Suspicion(5, 8, 0, alone=False, running=False, timed_out=7)
    assert stands(topic)[WAITING] == Suspicion(1, 2, 0, alone=False, running=False, timed_out=1)

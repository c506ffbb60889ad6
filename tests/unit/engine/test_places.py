"""What a worker learns of the owner before it, when it claims a place, opens it, or loses it between."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.engine.engine import Engine
from app.engine.membership import Assignment
from app.engine.offsets import Committed, OffsetReader, Partition
from app.engine.options import EngineOptions
from app.engine.places import Place, PlaceKind, Places
from app.engine.producer import Answer
from app.engine.unit_of_work import Unit
from app.protocol.group_data import GroupPlan
from app.protocol.ownership import Claiming, Running
from app.protocol.unit import Tag

WHERE = ("work", 0)
ENDS = 9
KIND = PlaceKind("server", 1, (WHERE[0],), {})
DEAD = Tag("w0", 1, 5)


class Log:
    """The committed offset of one partition, as every worker reads it."""

    def __init__(self, tag: Tag | None) -> None:
        self.entry = Committed(3, tag)

    def tags(self, partitions: Sequence[Partition]) -> dict[Partition, Tag | None]:
        return dict.fromkeys(partitions, self.entry.tag)

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, Committed]:
        return dict.fromkeys(partitions, self.entry)

    def starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 0)

    def high_watermarks(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        return dict.fromkeys(partitions, ENDS)


class Flow:
    """Commits at once, what it is let commit."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self.unit = Unit(60.0)
        self.tally = SimpleNamespace(restored=lambda rows, seconds: None)
        self.answers = True

    def leave(self, place: Place) -> None:
        """What is fetched is another test's."""

    async def commit_offsets(self, offsets: Mapping[Partition, int], *, inherited: bool) -> Answer:
        self.commit(offsets, inherited=inherited)
        if not self.answers:
            await asyncio.Event().wait()
        return Answer.COMMITTED

    def commit(self, offsets: Mapping[Partition, int], *, inherited: bool = False, released: bool = False) -> None:
        worker = self._worker
        worker.log.entry = Committed(offsets[WHERE], Tag(worker.name, 1, 1, released, inherited))


class Worker:
    """One worker's places, on a log that it shares with others."""

    def __init__(self, log: Log, name: str) -> None:
        self.log, self.name = log, name
        self.opened: list[tuple[bool, dict[Partition, int]]] = []
        self.flow = Flow(self)
        self.generation = 0
        self.plan = GroupPlan({}, {}, {}, {}, frozenset(), frozenset())
        self.announcements = SimpleNamespace(read=dict)
        self.changelog = SimpleNamespace(follow=self.ignore, leave=self.ignore, restore=self.restore)
        options = SimpleNamespace(kinds=(KIND,), kafka={}, group="g", transactional_id=str)
        self.places = Places(cast("Engine", self), cast("EngineOptions", options))
        self.places._asking._reader = cast("OffsetReader", log)
        self.place = self.places.all["server-0"]

    @staticmethod
    def ignore(*anything: Any) -> None:
        """The rows are another test's."""

    @staticmethod
    def restore(*given: Any) -> None:
        """The rows are there; the last that is given is to be told."""
        given[-1](0)

    def post(self, event: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(event)

    def open(self, place: Place) -> None:
        self.opened.append((place.owner_died, dict(place.ends)))

    async def fence(self, transactional_id: str) -> None:
        """Nothing is open."""

    def fail(self, error: BaseException) -> None:
        raise error

    def lost(self) -> None:
        raise AssertionError("no claim is refused")

    def assigned(self, host: str, previous: int | None = None) -> None:
        """A new generation of w1 and w2."""
        self.generation += 1
        workers = {"w1": ("", 1), "w2": ("", 1)}
        self.plan = GroupPlan({"server-0": host}, {}, {}, workers, frozenset(), frozenset())
        self.places.assigned(Assignment(self.generation, "m", 1, previous, self.plan), self.name)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - the places tell nobody.
                await asyncio.sleep(0.001)

    async def runs(self) -> None:
        await self.until(lambda: isinstance(self.place.holding, Running))

    async def claims(self) -> None:
        """The claim is in the log, and the place is lost before its answer comes."""
        self.flow.answers = False
        before = self.log.entry
        self.assigned(self.name)
        await self.until(lambda: self.log.entry is not before)
        assert isinstance(self.place.holding, Claiming)
        self.places.given_up()
        self.flow.answers = True

    async def opens(self) -> tuple[bool, dict[Partition, int]]:
        """Whether the owner before it died, and where the stream ended then, as the resident is told."""
        self.assigned(self.name)
        await self.runs()
        return self.opened[-1]


def test_of_a_death_the_next_owner_hears() -> None:
    async def test() -> None:
        assert await Worker(Log(DEAD), "w1").opens() == (True, {WHERE: ENDS})
        assert await Worker(Log(replace(DEAD, released=True)), "w1").opens() == (False, {})
        assert await Worker(Log(None), "w1").opens() == (False, {})

    asyncio.run(test())


def test_who_loses_a_place_before_it_opens_leaves_the_death_to_the_next() -> None:
    async def test() -> None:
        log = Log(DEAD)
        first, second = Worker(log, "w1"), Worker(log, "w2")
        await first.claims()
        assert not first.opened
        await second.claims()
        assert await first.opens() == (True, {WHERE: ENDS})

    asyncio.run(test())


def test_a_unit_that_aborts_leaves_the_death_to_be_told_again() -> None:
    async def test() -> None:
        worker = Worker(Log(DEAD), "w1")
        await worker.opens()
        worker.places.unit_aborted()
        await worker.runs()
        assert worker.opened == [(True, {WHERE: ENDS})] * 2
        worker.flow.commit({WHERE: 3})
        worker.places.unit_aborted()
        await worker.runs()
        assert worker.opened[-1][0] is False

    asyncio.run(test())


@pytest.mark.parametrize("released", [False, True])
def test_a_death_ends_with_the_first_unit_of_the_next_owner(released: bool) -> None:
    async def test() -> None:
        log = Log(DEAD)
        first, second = Worker(log, "w1"), Worker(log, "w2")
        await first.opens()
        first.flow.commit({WHERE: 3}, released=released)
        first.places.given_up()
        assert (await second.opens())[0] is False

    asyncio.run(test())

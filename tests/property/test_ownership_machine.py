"""Ownership against a group, a broker and workers that freeze, stall, die and miss rebalances.

I1, I2: nothing is lost or doubled; I4: one owner; I6: every host comes to serve.
"""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from app.protocol.ownership import Role, Running
from tests.property.mutation import Choose
from tests.property.ownership_world import Worker, World

NAMES = ("w1", "w2", "w3")

# -- what may happen next: who may do it, and how -------------------------------------------------------------------


def anybody(worker: Worker) -> bool:
    return True


def reads(worker: Worker) -> bool:
    return worker.awake and worker.restore is not None and worker.restore.target is None


def restores(worker: Worker) -> bool:
    return worker.awake and worker.restore is not None and worker.restore.target is not None


def claims(worker: Worker) -> bool:
    return not worker.frozen and bool(worker.claims)


def is_answered(worker: Worker) -> bool:
    return worker.awake and bool(worker.answers)


def works(worker: Worker) -> bool:
    return worker.awake and isinstance(worker.holding, Running) and worker.unit is None


def learns(worker: Worker) -> bool:
    return worker.awake and worker.unit is not None and worker.unit.committed is not None


def _join(world: World, host: str, others: list[Role | None], unheard: frozenset[str]) -> None:
    workers = world.workers
    roles = dict(zip(workers, others, strict=False)) | {host: Role.HOST}
    joined = {
        name: role
        for name, role in roles.items()
        if role is not None and not (workers[name].frozen or workers[name].dead)
    }
    world.rebalance(joined, unheard)


def everybody_joins(world: World, worker: Worker, choose: Choose) -> None:
    _join(world, worker.name, [Role.STANDBY] * 3, choose([frozenset(), frozenset({choose(list(world.workers))})]))


def some_join(world: World, worker: Worker, choose: Choose) -> None:
    _join(world, worker.name, [choose([Role.STANDBY, Role.NONE, None]) for _ in NAMES], frozenset())


def another_owns_it_between(world: World, worker: Worker, choose: Choose) -> None:
    """The place goes to another worker, which writes, and comes back."""
    unheard = choose([frozenset(), frozenset({worker.name})])
    for other in world.workers.values():
        if other is not worker and other.awake:
            world.rebalance({worker.name: Role.STANDBY, other.name: Role.HOST}, unheard)
            world.quiet(other)
            world.work(other, 1)
            world.rebalance({worker.name: Role.HOST, other.name: Role.STANDBY}, frozenset())


def rebalance_before_the_answer(world: World, worker: Worker, choose: Choose) -> None:
    world.claim(worker)
    _join(world, worker.name, [Role.STANDBY] * 3, frozenset())
    some_way(world, worker, choose)


def quiet_time(world: World, worker: Worker, choose: Choose) -> None:
    """Nothing disturbs some workers for a while; whoever of them serves works."""
    everybody = list(world.workers.values())
    groups = [[worker], [other for other in everybody if other is not worker], everybody]
    quiet = groups[choose([0, 1, 2])]
    for one in quiet:
        world.quiet(one)
    for one in quiet:
        if works(one):
            world.work(one, choose([1, 2]))


def some_way(world: World, worker: Worker, choose: Choose) -> None:
    """The first things that the worker waits for happen; then perhaps answers come, the oldest or the newest."""
    steps = [world.hear_all, world.read_for_restore, world.end_restore, world.claim]
    for step in steps[: choose([1, 2, 3, 4])]:
        step(worker)
    for _ in range(choose([0, 1, 2])):
        world.answer(worker, choose([0, -1]))


def unit_fails(world: World, worker: Worker, choose: Choose) -> None:
    world.begin_unit(worker, 1)
    world.end_transaction(worker.name, commits=False)
    world.learn(worker, fenced=choose([False, True]))


def unit_over_a_join(world: World, worker: Worker, choose: Choose) -> None:
    """The engine stalls while its unit is on its way; the membership thread joins without it."""
    world.begin_unit(worker, 1)
    worker.stalled = True
    _join(world, worker.name, [Role.STANDBY] * 3, frozenset())
    worker.stalled = False
    world.hear_all(worker)


def trouble(world: World, worker: Worker, choose: Choose) -> None:
    match choose(["freezes", "stalls", "dies", "nothing", "nothing"]):
        case "freezes":
            worker.frozen = True
        case "stalls":
            worker.stalled = True
        case "dies":
            world.kill(worker.name)


def return_to_life(world: World, worker: Worker, choose: Choose) -> None:
    worker.frozen = worker.stalled = False
    if worker.dead:
        world.start(worker)


Move = tuple[Callable[[Worker], Any], Callable[[World, Worker, Choose], Any]]

MOVES: list[Move] = [
    (anybody, everybody_joins),
    (anybody, some_join),
    (anybody, lambda world, worker, choose: world.rejoin_unchanged(worker)),
    (lambda worker: not (worker.frozen or worker.dead), another_owns_it_between),
    (claims, rebalance_before_the_answer),
    (anybody, quiet_time),
    (anybody, some_way),
    (lambda worker: worker.awake and worker.inbox, lambda world, worker, choose: world.hear(worker)),
    (reads, lambda world, worker, choose: world.read_for_restore(worker)),
    (restores, lambda world, worker, choose: world.end_restore(worker)),
    (claims, lambda world, worker, choose: world.claim(worker)),
    (is_answered, lambda world, worker, choose: world.answer(worker, choose([0, 1, -1]))),
    (is_answered, lambda world, worker, choose: world.never_answer(worker)),
    (lambda worker: worker.following, lambda world, worker, choose: world.follow(worker, choose([1, 2]))),
    (works, lambda world, worker, choose: world.begin_unit(worker, choose([1, 2]))),
    (works, unit_fails),
    (works, unit_over_a_join),
    (
        lambda worker: worker.unit,
        lambda world, worker, choose: world.end_transaction(worker.name, commits=choose([True, False])),
    ),
    (learns, lambda world, worker, choose: world.learn(worker, fenced=choose([False, True]))),
    (anybody, trouble),
    (lambda worker: not worker.awake, return_to_life),
]


def move(world: World, choose: Choose) -> None:
    workers = list(world.workers.values())
    number = choose([n for n, (able, _) in enumerate(MOVES) if any(map(able, workers))])
    able, act = MOVES[number]
    act(world, world.workers[choose([worker.name for worker in workers if able(worker)])], choose)


class OwnershipMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(NAMES)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        move(self.world, lambda options: data.draw(st.sampled_from(options)))

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.settle()


def test_ownership() -> None:
    run_state_machine_as_test(OwnershipMachine, settings=settings(max_examples=60, stateful_step_count=40))


def walk(choose: Choose) -> None:
    """One history of two workers, by chance; the same checks as the machine's."""
    world = World(NAMES[:2])
    for _ in range(40):
        move(world, choose)
        world.check()
    world.settle()

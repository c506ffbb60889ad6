"""The steward among workers that come, leave in good order, die and return, and servers that close views some time.

What is promised of it: a server is down only by an operator's word or because its home worker died long enough ago;
planned moves fail nothing, and no death is overlooked; somebody is always up; views follow each other one at a time;
every command ends once; and when the workers are back, everything comes home.
"""

from collections import Counter

from app.protocol import views
from app.protocol.homes import STEADY_MAX_MS, Seen
from app.protocol.markers import Closed, Leaving, View, ViewClosed
from app.protocol.moves import Announce
from app.protocol.views import (
    Calm,
    Changing,
    Event,
    FailOrdered,
    ForgetOrdered,
    Moment,
    Publish,
    RestoreOrdered,
    State,
    Tick,
    due_ms,
    first,
)
from tables import views as table
from tests.property.mutation import Choose

SERVERS = 5
WORKERS = ("w1", "w2", "w3", "w4")


class Steward:
    """One history. ``views.step`` is looked up anew each time, so that a test can change a rule."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.rehome_after = choose([0, 1_000, 30_000])
        self.forget_after = choose([5_000, 600_000])
        self.now = 1_000
        self.state: State = first(SERVERS)
        self.alive = dict.fromkeys(WORKERS[: choose([2, 3, 4])], 1)
        self.incarnation = 1
        self.hosts = self.ideal()
        self.homes: list[str] = list(self.hosts)
        self.died: dict[str, int] = {}
        self.down: set[int] = set()
        self.sticky: set[int] = set()
        self.open: set[int] = set()
        self.epoch = 0
        self.ids: list[str] = []
        self.ends: Counter[str] = Counter()
        self.told: list[str] = []
        self.feed(self.plan())

    # -- the workers ----------------------------------------------------------------------------------------------

    def ideal(self) -> tuple[str, ...]:
        order = [[WORKERS[(server + step) % len(WORKERS)] for step in range(len(WORKERS))] for server in range(SERVERS)]
        return tuple(next(name for name in names if name in self.alive) for names in order)

    def plan(self, *, settled: bool = True) -> Seen:
        return Seen(dict(self.alive), self.hosts, settled)

    def regroup(self) -> None:
        """A new plan. A newcomer may have to warm up first, while whoever hosts goes on."""
        before = self.hosts
        self.hosts = self.ideal()
        if self.choose([False, True]):
            warming = tuple(was if was in self.alive else now for was, now in zip(before, self.hosts, strict=True))
            self.hosts, ideal = warming, self.hosts
            self.learn_homes()
            self.feed(self.plan(settled=self.hosts == ideal))
            self.hosts = ideal
        self.learn_homes()
        self.feed(self.plan())

    def learn_homes(self) -> None:
        """The home worker as the design says: who hosts, unless the home worker has died."""
        for server, host in enumerate(self.hosts):
            if self.homes[server] not in self.died and server not in self.down:
                self.homes[server] = host

    def join(self) -> None:
        absent = [name for name in WORKERS if name not in self.alive]
        if absent:
            name = self.choose(absent)
            self.incarnation += 1
            self.alive[name] = self.incarnation
            self.died.pop(name, None)
            self.told.append(f"{name} joins")
            self.regroup()

    def leave(self) -> None:
        if len(self.alive) > 1:
            name = self.choose(sorted(self.alive))
            self.told.append(f"{name} leaves")
            self.feed(Leaving(name, self.alive.pop(name)))
            self.regroup()

    def die(self) -> None:
        if len(self.alive) > 1:
            name = self.choose(sorted(self.alive))
            self.told.append(f"{name} dies")
            del self.alive[name]
            self.died[name] = self.now
            self.regroup()

    def restart(self) -> None:
        """So quick that no plan has missed it."""
        name = self.choose(sorted(self.alive))
        self.incarnation += 1
        self.alive[name] = self.incarnation
        self.feed(self.plan())

    # -- the rest -------------------------------------------------------------------------------------------------

    def order(self) -> None:
        command = f"c{len(self.ids)}"
        self.ids.append(command)
        server = self.choose(range(-1, SERVERS + 1))
        order: Event = self.choose([FailOrdered, FailOrdered, RestoreOrdered])(command, server)
        if self.choose([False, False, False, True]):
            order = ForgetOrdered(command, self.choose(WORKERS))
        self.told.append(f"{order}")
        self.feed(order)
        if self.choose([False, False, True]) and self.ends[command] == 0:
            self.feed(order)

    def close(self) -> None:
        if self.open:
            server = self.choose(sorted(self.open))
            self.open.discard(server)
            self.feed(Closed(server, self.epoch))

    def late(self) -> None:
        self.feed(Closed(self.choose(range(SERVERS)), self.choose(range(self.epoch + 1)) - 1))

    def wait(self) -> None:
        self.now += self.choose([10, 1_000, 40_000])
        self.tick()

    def tick(self) -> None:
        due = due_ms(self.state, self.moment)
        if due is not None and due <= self.now:
            self.feed(Tick())

    def happen(self) -> None:
        acts = [self.join, self.leave, self.die, self.restart, self.order, self.late, self.wait]
        self.choose([*acts, self.join, self.wait, *[self.close] * 6])()

    def settle(self) -> None:
        """Everybody comes back, everything is closed: what was not failed by an operator is up again."""
        for name in WORKERS:
            if name not in self.alive:
                self.incarnation += 1
                self.alive[name] = self.incarnation
                self.died.pop(name, None)
        self.hosts = self.ideal()
        self.feed(self.plan())
        for _ in range(100):
            while self.open:
                self.close()
            self.now += STEADY_MAX_MS
            self.tick()
        assert isinstance(self.state, Calm), f"a view never closes: {self.state}"
        known = self.state.known
        assert known.down == known.sticky, f"not everything comes home: {known}"
        assert self.ends == Counter(self.ids), f"ends {self.ends}, orders {self.ids}"
        assert due_ms(self.state, self.moment) is None, "something is due for ever"

    # -- the core -------------------------------------------------------------------------------------------------

    @property
    def moment(self) -> Moment:
        return Moment(SERVERS, self.rehome_after, self.forget_after, self.now)

    def feed(self, event: Event) -> None:
        decided = views.step(self.state, event, self.moment)
        self.state = table.decode(table.encode(decided.state))
        assert self.state == decided.state
        self.forget({name for name, at in self.died.items() if self.now >= at + self.forget_after})
        for effect in decided.effects:
            match effect:
                case Announce("worker-forgotten", _, _, fields):
                    self.forget({fields["worker"]})
                case Publish(View() as view):
                    self.orphans()
                    self.check(view)
                case Publish(ViewClosed(epoch)):
                    assert (epoch, self.open) == (self.epoch, set()), f"view {epoch} is closed, {self.open} are not"
                case _:
                    pass
            if isinstance(effect, Announce) and effect.final:
                assert effect.id is not None
                self.ends[effect.id] += 1
                assert self.ends[effect.id] == 1, f"{effect.id} ends twice"
        if isinstance(self.state, Changing):
            assert self.state.missing == self.open
        else:
            found = self.orphans()
            assert not found, f"the deaths of {[self.homes[server] for server in found]} are overlooked"

    def orphans(self) -> list[int]:
        """Servers that are to be failed. If that leaves nobody, they are at home where they are, and there are none."""
        gone = {name for name, at in self.died.items() if self.now >= at + self.rehome_after}
        found = [s for s, home in enumerate(self.homes) if home in gone and s not in self.down]
        if len(self.down.union(found)) < SERVERS:
            return found
        for server in found:
            self.homes[server] = self.hosts[server]
        return []

    def forget(self, workers: set[str]) -> None:
        for name in workers:
            self.died.pop(name, None)
        for server, home in enumerate(self.homes):
            if home in workers:
                self.homes[server] = self.hosts[server]

    def check(self, view: View) -> None:
        assert view.epoch == self.epoch + 1
        assert not self.open, f"view {view.epoch} follows while {self.open} have not closed {self.epoch}"
        failed, restored = set(view.failed), set(view.restored)
        assert bool(failed) != bool(restored), f"{view} does both or nothing"
        assert not failed & self.down
        assert restored <= self.down
        self.down = self.down - restored | failed
        assert self.down == set(view.down)
        assert len(self.down) < SERVERS, "nobody is up"
        known = self.state_of_view()
        for server in failed - known.sticky:
            home = self.homes[server]
            assert home in self.died, f"server {server} is failed, its home worker {home} lives"
            assert self.now - self.died[home] >= self.rehome_after, f"server {server} is failed too soon"
        for server in restored & self.sticky:
            assert server not in known.sticky, f"server {server} returns against the operator's word"
        for server in restored:
            self.homes[server] = self.hosts[server]
        self.sticky = set(known.sticky)
        self.epoch, self.open = view.epoch, set(range(SERVERS))
        self.told.append(f"{view}")

    def state_of_view(self) -> views.Known:
        return self.state.known

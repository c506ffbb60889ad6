"""What a run of the demo has seen, and what its pictures are drawn from; pure.

Times are seconds since the traffic began, but for those of steps before it, which are negative.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from app.observe.account import Account

SILENCE_S: Final = 0.75
"""A server that has answered several times a second and is silent for so long is not served."""

State = Literal["to come", "now", "done", "failed"]


@dataclass(slots=True)
class Step:
    """One part of the run. ``drawn`` is its name in a picture; empty: it is not drawn."""

    key: str
    title: str
    about: str
    drawn: str = ""
    state: State = "to come"
    begin_s: float = 0.0
    end_s: float = 0.0
    outcome: str = ""


class Task(NamedTuple):
    """A task that was answered: when it was sent, how long that took, who answered."""

    sent_s: float
    took_ms: float
    session: int
    server: int
    worker: str

    @property
    def at_s(self) -> float:
        """When the result was there."""
        return self.sent_s + self.took_ms / 1000


class Tasks:
    """All tasks that were answered, in columns: a minute of traffic is no load for the memory."""

    def __init__(self) -> None:
        self._sent = array("d")
        self._took = array("f")
        self._session = array("H")
        self._server = array("H")
        self._worker = array("B")
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Task]:
        columns = (self._sent, self._took, self._session, self._server, self._worker)
        for sent, took, session, server, worker in zip(*columns, strict=True):
            yield Task(sent, took, int(session), int(server), self._names[int(worker)])

    def add(self, task: Task) -> None:
        """Take one."""
        if task.worker not in self._names:
            self._names.append(task.worker)
        self._sent.append(task.sent_s)
        self._took.append(task.took_ms)
        self._session.append(task.session)
        self._server.append(task.server)
        self._worker.append(self._names.index(task.worker))


@dataclass(frozen=True, slots=True)
class Story:
    """A run that is over.

    ``homes`` is the server that each session had when it was first answered. ``facts`` are lines for the end of the
    page: versions, machine, command.
    """

    account: Account
    steps: Sequence[Step]
    tasks: Tasks
    homes: Mapping[int, int]
    servers: int
    seconds: float
    problems: Sequence[str] = ()
    takeover_ms: int | None = None
    pause_ms: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all is right: the account, and every step."""
        told = self.takeover_ms is not None and self.pause_ms is not None
        return self.account.ok and told and not self.problems and all(step.state == "done" for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """The last line of `--json`."""
        counts = ("sent", "performed", "failed", "lost", "doubled", "out_of_order", "gaps")
        return {
            "ok": self.ok,
            **{name: getattr(self.account, name) for name in counts},
            "pause_ms": self.pause_ms,
            "takeover_ms": self.takeover_ms,
        }


class Spread(NamedTuple):
    """How long the tasks took that were sent within one slice of time."""

    from_s: float
    median_ms: float
    most_ms: float
    longest_ms: float


def latency(tasks: Tasks, seconds: float, slice_s: float) -> list[Spread]:
    """Median, 95th percentile and longest of each slice in which something was sent, by time of sending."""
    slices: dict[int, list[float]] = {}
    for task in tasks:
        if 0 <= task.sent_s < seconds:
            slices.setdefault(int(task.sent_s / slice_s), []).append(task.took_ms)
    found = []
    for number in sorted(slices):
        values = sorted(slices[number])
        found.append(Spread(number * slice_s, _share(values, 0.5), _share(values, 0.95), values[-1]))
    return found


def _share(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


class Part(NamedTuple):
    """Sessions that are at one worker: at their home server or away from it. No worker: nobody serves them."""

    worker: str
    away: bool
    sessions: int


class Stretch(NamedTuple):
    """A time in which nothing changed for the sessions of one home."""

    from_s: float
    to_s: float
    parts: tuple[Part, ...]


class _Track:
    """Values that change: (time, value), and what it was at a time."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.values: list[Any] = []

    def add(self, time_s: float, value: Any) -> None:
        if not self.values or self.values[-1] != value:
            self.times.append(time_s)
            self.values.append(value)

    def at(self, time_s: float) -> Any:
        index = bisect_right(self.times, time_s) - 1
        return self.values[max(0, index)]


class _Servers:
    """Who answered for each server, and when nobody did."""

    def __init__(self, ordered: Sequence[Task]) -> None:
        self._hosts: dict[int, _Track] = {}
        self._silent: dict[int, list[tuple[float, float]]] = {}
        last: dict[int, float] = {}
        for task in ordered:
            before = last.get(task.server)
            if before is not None and task.at_s - before > SILENCE_S:
                self._silent.setdefault(task.server, []).append((before, task.at_s))
            last[task.server] = task.at_s
            self._hosts.setdefault(task.server, _Track()).add(task.at_s, task.worker)

    def host(self, server: int, time_s: float) -> str:
        if any(begin < time_s < end for begin, end in self._silent.get(server, ())):
            return ""
        return str(self._hosts[server].at(time_s))


def whereabouts(tasks: Tasks, homes: Mapping[int, int], seconds: float, slice_s: float) -> dict[int, list[Stretch]]:
    """For each home, where its sessions were: at which workers, and whether away from home, over the time.

    A session is where its last result came from; a server that is silent for :data:`SILENCE_S`, although its sessions
    are there, is not served.
    """
    ordered = sorted(tasks, key=lambda task: task.at_s)
    servers = _Servers(ordered)
    tracks: dict[int, _Track] = {}
    for task in ordered:
        tracks.setdefault(task.session, _Track()).add(task.at_s, task.server)
    found: dict[int, list[Stretch]] = {home: [] for home in sorted(set(homes.values()))}
    for number in range(max(1, int(seconds / slice_s))):
        middle = (number + 0.5) * slice_s
        counts: dict[int, dict[tuple[str, bool], int]] = {}
        for session, track in tracks.items():
            home, server = homes[session], track.at(middle)
            key = (servers.host(server, middle), server != home)
            parts = counts.setdefault(home, {})
            parts[key] = parts.get(key, 0) + 1
        for home, parts in counts.items():
            ordered_parts = sorted(parts.items(), key=lambda entry: (entry[0][1], entry[0][0]))
            _append(found[home], number * slice_s, slice_s, tuple(Part(*key, n) for key, n in ordered_parts))
    return found


def _append(stretches: list[Stretch], from_s: float, slice_s: float, parts: tuple[Part, ...]) -> None:
    if stretches and stretches[-1].parts == parts:
        stretches[-1] = Stretch(stretches[-1].from_s, from_s + slice_s, parts)
    else:
        stretches.append(Stretch(from_s, from_s + slice_s, parts))

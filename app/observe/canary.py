"""What a canary knows of its own tasks, and what it concludes from their results; pure.

A *lane* is one session. Its tasks are numbered 1, 2, 3 ... for ever. A result brings its number and, from the state of
the session, the number of the task that was performed before it (:mod:`app.canary`); both are compared with what the
lane knows:

* a number that is passed over was lost, unless it comes later: then it was out of order;
* a number that comes twice was doubled;
* a state that tells of an older task than was performed has lost an effect; one that tells of the task itself has it
  twice.

No false alarms: only what the brokers have confirmed can be lost, and only after :data:`GRACE_S`. A restarted canary
knows from its ledger what may have been sent, begins beyond that, and asks each session where it stands.

Times are seconds on any clock that only goes forward.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from app.errors import HoldfastError

GRACE_S: Final = 10.0
"""How long a task that was passed over may still turn up."""

RESERVE: Final = 1_000
"""So many numbers are written down before the first of them is sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A result of a lane. ``previous`` and ``previous_run`` are what the session's state told; None if it failed.

    ``run`` is the word of the process that sent the task.
    """

    number: int
    run: str
    previous: int | None
    previous_run: str
    worker: str
    server: int
    at: float


@dataclass(frozen=True, slots=True)
class Takeover:
    """Another worker answered than before; ``gap_s``: how long the session had waited for it."""

    tenant: str
    server: int
    before: str
    after: str
    gap_s: float


@dataclass(slots=True)
class Tally:
    """What all lanes have found. ``pause_s``: the longest time for which a session had a task and no result."""

    sent: int = 0
    performed: int = 0
    failed: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    late: int = 0
    takeovers: int = 0
    takeover_s: float = 0.0
    pause_s: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every task that was answered was performed once and in order."""
        return not (self.failed or self.lost or self.doubled or self.out_of_order)

    def add_fault(self, kind: str, text: str) -> None:
        """Count a fault; the first few are kept in words."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.examples) < 10:
            self.examples.append(f"{kind.replace('_', ' ')}: {text}")


@dataclass(slots=True)
class _Pending:
    """A task without a result. ``sent_at`` is None for one of an earlier run."""

    sent_at: float | None
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """A lane as the ledger keeps it.

    ``waiting`` are the tasks that the brokers had and that had no result; numbers up to ``reserved`` may have been
    sent; ``done`` is the last one that was performed.
    """

    waiting: tuple[int, ...] = ()
    reserved: int = 0
    done: int = 0

    def without_results(self) -> "Saved":
        """The same, when results that would settle what waits are there no more."""
        return Saved((), self.reserved, self.done)


class Lane:
    """One session.

    Args:
        tenant: whose.
        session: its name.
        run: a word of this process's own.
        tally: where faults are counted, together with those of other lanes.
        late_s: a result that takes longer is late.
        may_forget: sessions are deleted when nothing happens in them for long.
        saved: what an earlier run knew.

    Attributes:
        worker: who answered last; empty before the first answer.
        server: where, -1 before the first answer.
        pause_s: the longest pause since :meth:`reset`.
        open: whether the session has told where it stands.
    """

    def __init__(
        self,
        tenant: str,
        session: str,
        run: str,
        tally: Tally,
        *,
        late_s: float = 1.0,
        may_forget: bool = False,
        saved: Saved | None = None,
    ) -> None:
        known = saved or Saved()
        self.tenant = tenant
        self.session = session
        self.worker = ""
        self.server = -1
        self.pause_s = 0.0
        self.open = False
        self.takeovers: list[Takeover] = []
        self._run = run
        self._tally = tally
        self._late_s = late_s
        self._may_forget = may_forget
        self._known = saved is not None
        self._done = known.done
        self._reserved = known.reserved
        self._next = known.reserved + 1
        self._begin = known.reserved + 1
        self._pending = {number: _Pending(None, confirmed=True) for number in known.waiting}
        self._refused: set[int] = set()
        self._stood = 0
        self._mine = False
        self._missing: dict[int, tuple[float, _Pending]] = {}
        self._heard_at: float | None = None
        self._answered_s = float("-inf")

    # -- sending ------------------------------------------------------------------------------------------------------

    def reserve(self) -> bool:
        """Whether the ledger has to be written before the next task is sent."""
        if self._next <= self._reserved:
            return False
        self._reserved = self._next + RESERVE
        return True

    def send(self, at: float) -> int:
        """Return the number of the task that is sent now."""
        assert self.open, "a session tells first where it stands"
        assert self._next <= self._reserved, "numbers are written down before they are sent"
        number, self._next = self._next, self._next + 1
        self._pending[number] = _Pending(at)
        self._tally.sent += 1
        return number

    def confirm(self, number: int) -> None:
        """The brokers have it."""
        found = self._pending.get(number)
        if found is None and number in self._missing:
            found = self._missing[number][1]
        if found is not None:
            found.confirmed = True

    def refuse(self, number: int) -> None:
        """The brokers have not confirmed it in time: it may be there or not, and neither is a fault."""
        self._refused.add(number)

    # -- answers ------------------------------------------------------------------------------------------------------

    def asked(self, answer: Answer) -> None:
        """The session has told where it stands: go on behind that, and behind all that may have been sent.

        Raises:
            HoldfastError: another canary has gone on where this one stopped.
        """
        self.worker, self.server, self._heard_at = answer.worker, answer.server, answer.at
        stands = answer.previous or 0
        self._pass_over(self._next, answer.at)
        if self._known and stands < self._done and not (stands == 0 and self._may_forget):
            self._fault("lost", f"performed up to {self._done}, and its state tells of {stands}")
        self._done = self._stood = stands
        if stands >= self._next:
            # Somebody without this ledger was here; nothing can be said about what it sent.
            self._begin = self._next = self._reserved = stands + 1
        self.open = True

    def take(self, answer: Answer) -> None:
        """A result.

        Raises:
            HoldfastError: another canary sends tasks to the same session.
        """
        number, mine = answer.number, answer.run == self._run
        pending = self._pending.get(number)
        if pending is not None and mine == (pending.sent_at is not None):
            del self._pending[number]
            self._pass_over(number, answer.at)
            self._measure(answer, pending.sent_at)
            self._perform(answer, pending)
        elif number in self._missing:
            del self._missing[number]
            self._fault("out_of_order", f"task {number} was answered after a later one")
        elif mine and self._begin <= number < self._next:
            self._fault("doubled", f"task {number} was answered twice")

    def _pass_over(self, number: int, at: float) -> None:
        for earlier in [earlier for earlier in self._pending if earlier < number]:
            self._missing[earlier] = (at, self._pending.pop(earlier))

    def _measure(self, answer: Answer, sent_at: float | None) -> None:
        if sent_at is not None:
            self._answered_s = sent_at
            gap_s = answer.at - max(sent_at, self._heard_at or sent_at)
            self._note_pause(gap_s)
            if answer.at - sent_at > self._late_s:
                self._tally.late += 1
            if self.worker not in ("", answer.worker):
                self._tally.takeovers += 1
                self._tally.takeover_s = gap_s
                self.takeovers.append(Takeover(self.tenant, answer.server, self.worker, answer.worker, gap_s))
        self.worker, self.server, self._heard_at = answer.worker, answer.server, answer.at

    def _perform(self, answer: Answer, pending: _Pending) -> None:
        if answer.previous is None:
            self._fault("failed", f"task {answer.number} was answered as failed")
            return
        # What an earlier run sent still arrives before the question is answered; its ledger may be older.
        if pending.sent_at is not None:
            self._tally.performed += 1
            self._compare(answer, answer.previous)
            self._mine = True
        self._done = answer.number

    def _compare(self, answer: Answer, previous: int) -> None:
        # The last words of an earlier run may have reached the brokers after this one had asked.
        if self._stood < previous < self._begin:
            return
        if self._mine and answer.previous_run != self._run:
            raise HoldfastError(
                f"another canary sends to tenant {self.tenant}: stop one of them, or give it another --tenant"
            )
        if previous >= answer.number:
            self._fault("doubled", f"task {answer.number} was performed on a state that has {previous} already")
        elif previous < self._done:
            self._fault("lost", f"task {answer.number} was performed on the state of {previous}, not of {self._done}")

    # -- time ---------------------------------------------------------------------------------------------------------

    def tick(self, at: float) -> None:
        """Look at what is missing, and at a pause that goes on."""
        for number, (since, pending) in list(self._missing.items()):
            if at - since > GRACE_S:
                self._give_up(number, pending)
        waiting = next(iter(self._pending.values()), None)
        if waiting is not None and waiting.sent_at is not None:
            self._note_pause(at - max(waiting.sent_at, self._heard_at or waiting.sent_at))

    def finish(self) -> None:
        """No more is awaited: what was passed over is lost."""
        for number, (_, pending) in list(self._missing.items()):
            self._give_up(number, pending)

    def heard_after(self, at: float) -> bool:
        """Whether a task that was sent after ``at`` has its result."""
        return self._answered_s > at

    def reset(self) -> None:
        """Begin to measure pauses anew."""
        self.pause_s = 0.0

    @property
    def waiting(self) -> int:
        """Tasks that the brokers have and that have no result yet."""
        return sum(pending.confirmed for pending in self._pending.values())

    @property
    def unconfirmed(self) -> int:
        """Tasks of this run that are on their way to the brokers."""
        own = {number: pending for number, pending in self._pending.items() if pending.sent_at is not None}
        return sum(not pending.confirmed and number not in self._refused for number, pending in own.items())

    def overdue(self, at: float) -> int:
        """Tasks that are late already and have no result yet."""
        times = (pending.sent_at for pending in self._pending.values())
        return sum(sent_at is not None and at - sent_at > self._late_s for sent_at in times)

    def save(self) -> Saved:
        """What the ledger keeps."""
        missing = {number: pending for number, (_, pending) in self._missing.items()}
        waiting = (number for number, pending in {**missing, **self._pending}.items() if pending.confirmed)
        return Saved(tuple(sorted(waiting)), self._reserved, self._done)

    def _give_up(self, number: int, pending: _Pending) -> None:
        del self._missing[number]
        if pending.confirmed:
            self._fault("lost", f"task {number} was confirmed by the brokers, and later ones were answered")

    def _note_pause(self, gap_s: float) -> None:
        self.pause_s = max(self.pause_s, gap_s)
        self._tally.pause_s = max(self._tally.pause_s, gap_s)

    def _fault(self, kind: str, text: str) -> None:
        self._tally.add_fault(kind, f"{self.tenant} {self.session}: {text}")


def encode(lanes: Mapping[tuple[str, str], Lane], offsets: Mapping[int, int], identity: str) -> dict[str, Any]:
    """The ledger: what each lane knows, and up to where ``results`` was read when it knew that."""
    entries = [
        {"tenant": tenant, "session": session, **asdict(lane.save())} for (tenant, session), lane in lanes.items()
    ]
    return {
        "v": 1,
        "identity": identity,
        "offsets": {str(part): offset for part, offset in offsets.items()},
        "lanes": entries,
    }


def decode(ledger: Any, identity: str) -> tuple[dict[tuple[str, str], Saved], dict[int, int]]:
    """Return the lanes and offsets of a ledger; nothing of one that is none, or of other topics than these."""
    try:
        if ledger["v"] != 1 or ledger["identity"] != identity:
            return {}, {}
        offsets = {int(part): int(offset) for part, offset in ledger["offsets"].items()}
        return dict(_lanes(ledger["lanes"])), offsets
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}, {}


def _lanes(entries: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], Saved]]:
    for entry in entries:
        waiting = tuple(map(int, entry["waiting"]))
        yield (entry["tenant"], entry["session"]), Saved(waiting, int(entry["reserved"]), int(entry["done"]))

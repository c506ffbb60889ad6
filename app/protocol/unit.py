"""The unit of work, as far as it must be decided: its tag, and what became of it when nobody said.

Every unit commits the offset of each partition it touches, and the offset's metadata carries a tag: who
committed, which incarnation of it, the number of the unit, and whether the partition was given up with it, or taken
from an owner that died. So whoever reads the committed offsets of a group knows

* which transactional id may still have an open transaction over a partition (its tag says *claimed*, and its
  worker is not in the group any more): that id is fenced before anything else is read,
* whether the last owner that had work in progress died: a successor says so in its claim (*inherited*), until a unit
  of its own is committed, for it may lose the place again before it has done anything about that death, and
* whether a unit whose commit was never answered is in the log: a transaction commits all of its offsets or none.

A producer that has seen an unknown outcome takes a new epoch, which fences whatever of it is still on its way; the tag
is how the outcome is then learned.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

DIGITS_MAX = 19


@dataclass(frozen=True, slots=True)
class Tag:
    """What the metadata of a committed offset says.

    ``incarnation`` is the start of the worker in milliseconds since the epoch; ``unit`` counts its units from 1;
    ``released`` means that the worker ended its last unit and gave the partition up; ``inherited``, that it has
    claimed the partition from an owner that died, and committed nothing since. Never both.
    """

    worker: str
    incarnation: int
    unit: int
    released: bool = False
    inherited: bool = False

    def encode(self) -> str:
        state = "r" if self.released else "i" if self.inherited else "c"
        return f"{self.worker} {self.incarnation} {self.unit} {state}"

    @classmethod
    def parse(cls, metadata: str | None) -> "Tag | None":
        """The tag in ``metadata``; None where somebody else (a tool that resets offsets) wrote it."""
        words = (metadata or "").split(" ")
        if len(words) != 4 or words[3] not in ("c", "r", "i"):
            return None
        worker, incarnation, unit, state = words
        if not (worker and _is_number(incarnation) and _is_number(unit)):
            return None
        return cls(worker, int(incarnation), int(unit), released=state == "r", inherited=state == "i")


def _is_number(word: str) -> bool:
    """Digits, and no more of them than a tag of ours can have."""
    return word.isdecimal() and len(word) <= DIGITS_MAX


class Outcome(Enum):
    """What became of a unit whose commit was not answered."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    FOREIGN = "foreign"
    """Somebody else has committed since: whatever it was, it is not ours to continue."""


def outcome(found: Iterable[Tag | None], ours: Tag) -> Outcome:
    """Learn a unit's outcome from the tags that its partitions carry after its producer was replaced.

    ``found`` has the tag of each partition of the unit, read with stable offsets (no transaction pending). A unit
    without partitions leaves no trace to learn from; FOREIGN makes its worker read everything again.
    """
    tags = list(found)
    if any(_same_unit(tag, ours) for tag in tags):
        return Outcome.COMMITTED
    if tags and all(tag is not None and _earlier(tag, ours) for tag in tags):
        return Outcome.ABORTED
    return Outcome.FOREIGN


def _same_unit(tag: Tag | None, ours: Tag) -> bool:
    return tag is not None and (tag.worker, tag.incarnation, tag.unit) == (
        ours.worker,
        ours.incarnation,
        ours.unit,
    )


def _earlier(tag: Tag, ours: Tag) -> bool:
    return (tag.worker, tag.incarnation) == (ours.worker, ours.incarnation) and tag.unit < ours.unit


def to_fence(tags: Iterable[Tag | None], departed: Iterable[str], present: Collection[str]) -> frozenset[str]:
    """Workers whose transactional ids a successor initialises before it reads anything else.

    ``tags`` are those of the partitions it gains, ``departed`` the members of the previous generation that are
    gone, ``present`` the members now: a live member has ended its transaction before it joined. A departed worker
    may have died between its assignment and its first claim, so it is fenced as well, unless it gave up in good order
    what this one gains.
    """
    known = [tag for tag in tags if tag is not None]
    claimed = {tag.worker for tag in known if not tag.released}
    released = {tag.worker for tag in known if tag.released}
    return frozenset((claimed | (set(departed) - released)) - set(present))


def died(tag: Tag | None, present: Collection[str], incarnations: Iterable[tuple[str, int]]) -> bool:
    """Did an owner of a partition die with work in progress, and nobody has gone on with that work since?

    ``incarnations`` are (worker, incarnation) of the members now: a worker that was started again under the same
    name has died too, and one that lives merely had to be passed over (it was slow in a rebalance).
    """
    if tag is None or tag.released:
        return False
    if tag.inherited:
        return True
    return (tag.worker, tag.incarnation) not in set(incarnations) or tag.worker not in present

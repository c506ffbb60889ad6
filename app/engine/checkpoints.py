"""Up to where stores hold the changelog: asked for beside the units of work, and noted with them.

A store that knows its position replays only what came after it. The position is the end of the changelog at some
moment of the generation under which a unit is committed: the commit proves that nobody else wrote there in that
generation, and all that this worker wrote before is applied when it begins. So an answer may come late, and no unit
waits for it.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from app.engine.offsets import Partition

log = logging.getLogger(__name__)

CHECKPOINT_S: Final = 5.0
"""How often stores learn a changelog position, which bounds what a local restart replays."""

POSITIONS_S: Final = 1.0
"""How long the answer may take; and how long the last commit before a rebalance is held up by it at most."""


class Asked(Protocol):
    """See :class:`app.engine.offsets.Asked`."""

    @property
    def done(self) -> bool: ...

    def result(self) -> dict[Partition, int]: ...


class Ends(Protocol):
    """The part of an offset reader that is used here."""

    def ask_high_watermarks(self, partitions: Iterable[Partition], timeout: float | None = None) -> Asked: ...


class Checkpoints:
    """Positions for units that are about to be committed, one after the other."""

    def __init__(self, ends: Ends) -> None:
        self._ends = ends
        self._next = time.monotonic() + CHECKPOINT_S
        self._generation = -1
        self._asked: Asked | None = None
        self._known: dict[Partition, int] = {}

    def positions(
        self, changelogs: Iterable[Partition], generation: int, *, last: bool = False
    ) -> Mapping[Partition, int]:
        """What the stores of ``changelogs`` may note when a unit of ``generation`` is committed.

        It is nothing for most units. ``last``: the places are given up with this unit, so the answer is waited for.
        """
        wanted = list(changelogs)
        if generation != self._generation:
            self._generation, self._asked, self._known = generation, None, {}
        if not wanted:
            return {}
        if last:
            self._ask(wanted)
        if self._asked is not None and (last or self._asked.done):
            self._take(self._asked)
        found = {where: self._known.pop(where) for where in wanted if where in self._known}
        if self._asked is None and time.monotonic() >= self._next:
            self._ask(wanted)
        return found

    def _ask(self, changelogs: Sequence[Partition]) -> None:
        self._next = time.monotonic() + CHECKPOINT_S
        try:
            self._asked = self._ends.ask_high_watermarks(changelogs, POSITIONS_S)
        except Exception as error:  # noqa: BLE001 - only a saving: without it a restart replays more.
            log.debug("asking for the ends of changelogs: %r", error)

    def _take(self, asked: Asked) -> None:
        self._asked = None
        try:
            self._known |= asked.result()
        except Exception as error:  # noqa: BLE001 - only a saving: without it a restart replays more.
            log.debug("the ends of changelogs: %r", error)

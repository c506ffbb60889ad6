"""Performing held tasks of one server in their order, with the vigilance that the tasks of its stream get.

A task that was held when a host died may be what killed it, as one of the stream may. So the tasks that wait for one
source are a stream of their own to :mod:`agents.suspicion`, numbered as they are held: after a death they are announced
before they are performed, and committed before more are announced.
"""

from typing import Protocol

from agents.cells import ServerContext
from agents.held import HeldTask, HeldTasks
from agents.suspicion import Verdict, Vigilance
from app.engine.places import Place
from app.protocol import suspects

Line = tuple[int, int]
"""Router and source."""


class Performer(Protocol):
    """Who performs tasks."""

    def perform_held(self, task: HeldTask, vigilance: Vigilance, verdict: Verdict | None) -> None:
        """Perform a task as if the stream brought it now, or fail it with the verdict."""


class Resuming:
    """Held tasks whose sessions have come."""

    def __init__(self, context: ServerContext, place: Place, held: HeldTasks, performer: Performer) -> None:
        self._context = context
        self._server = place.number
        self._held = held
        self._performer = performer
        self._found = suspects.of_held(place.number, place.suspicions)
        self._lines: dict[Line, Vigilance] = {}
        # Only what was held at the time can have been in progress at a host that died.
        for line in held.lines():
            self._lines[line] = self._vigilance(line, died=place.owner_died)
        for key in self._found.keys() - {suspects.held_key(self._server, *line) for line in self._lines}:
            context.announcements.write(key, None)
        self._settling: tuple[Vigilance, int] | None = None
        self._sealed = False

    def _vigilance(self, line: Line, *, died: bool) -> Vigilance:
        key = suspects.held_key(self._server, *line)
        first = self._held.first(*line)
        return Vigilance(
            self._context.announcements,
            server=self._server,
            committed=first,
            end=first + self._held.counts(line[0])[line[1]],
            died=died,
            max_crashes=self._context.max_crashes,
            found={key: self._found[key]} if key in self._found else {},
            key=key,
        )

    def some(self, router: int, source: int, most: int) -> int:
        """Perform some tasks that are held for sessions from ``source``; 0: a commit must come before."""
        line = (router, source)
        vigilance = self._lines.get(line)
        if vigilance is None:
            self._found.pop(suspects.held_key(self._server, *line), None)
            vigilance = self._lines[line] = self._vigilance(line, died=False)
        verdict = None
        if vigilance.active:
            if not self._may_begin(vigilance):
                return 0
            first = self._held.first(router, source)
            most = 1 if vigilance.alone else min(most, vigilance.end - first)
            verdict = vigilance.begin()
            self._settling = (vigilance, first + most)
        count = 0
        for task in self._held.some(router, source, most):
            self._performer.perform_held(task, vigilance, verdict)
            count += 1
        if self._settling is not None:
            self._context.engine.flow.hurry(alone=vigilance.alone)
        elif not self._held.counts(router).get(source):
            del self._lines[line]
        return count

    def _may_begin(self, vigilance: Vigilance) -> bool:
        if self._settling is not None:
            return False
        if not vigilance.alone:
            return True
        self._context.trials.add(self)
        if not self._context.engine.flow.quiet:
            # What was begun before is committed first: else this task is convicted for what another one did.
            self._context.engine.hurry()
            return False
        return True

    @property
    def wants_quiet(self) -> bool:
        """Is a task to be performed alone, as soon as nothing else is under way?"""
        return self._settling is None and self in self._context.trials

    @property
    def waits(self) -> bool:
        """Must a commit come before more is performed?"""
        return self._settling is not None

    def before_seal(self) -> None:
        """What was performed goes with this unit."""
        self._sealed = self._settling is not None

    def after_commit(self) -> None:
        """What was performed is committed, if it went with that unit."""
        if self._settling is not None and self._sealed:
            vigilance, position = self._settling
            self._settling = None
            self._context.trials.discard(self)
            vigilance.committed(position)

    def close(self) -> dict[bytes, bytes]:
        """The server is given up; what stands in ``suspects`` about held tasks from now on."""
        self._context.trials.discard(self)
        found: dict[bytes, bytes] = {}
        for vigilance in self._lines.values():
            found |= vigilance.withdraw()
        return found
